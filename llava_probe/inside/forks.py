"""Locks and processes that are forked: a lock that another thread holds at that moment is never let go in the child.

_putting = whole_at_forks(threading.RLock())   # of short changes: a fork waits until none is half made
at_forks(_locks_anew)                          # of whole runs: the child, which runs none of them, gets new ones
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def whole_at_forks(lock: threading.RLock) -> threading.RLock:
    """The lock, taken by whoever forks: what it guards is not half changed in the child."""
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


def at_forks(anew: Callable[[], object]) -> None:
    """Call ``anew`` first thing in each child process."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=anew)
