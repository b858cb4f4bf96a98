"""Changes of the code that a test must catch: each is made in a copy, and the tests named beside it must then fail.

    python tools/mutations.py            # all of them, two at a time
    python tools/mutations.py rollout    # those with this word in their name
    python tools/mutations.py --list     # what each changes

A test that passes whatever the code does proves nothing, and one that fails anyway neither: the tests run without any
change too. These are the places where a wrong number would look like a right one: a row too far, the wrong row of a
batch, windows in another order. Nothing is changed here: package and tests are copied to a temporary folder. A changed
line is found by its text, in whatever file it stands.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What the tests of a copy need.
COPIED = ("llava_probe", "tests", "tools", "pyproject.toml", "CONTRIBUTING.md", "README.md")
#: At once; each takes about one core.
PROCESSES = 2
#: Seconds after which the tests of one mutation are ended: a lock that is never let go would hold them for ever.
PATIENCE = 600
#: No exit status of pytest: it did not end.
ENDLESS = -1

CAUGHT, MISSED, LOST, UNWRITTEN = "caught", "not caught", "does not apply", "not written"


@dataclass(frozen=True)
class Mutation:
    """One change: ``old`` stands once in the package and becomes ``new``; ``tests`` must then fail.

    A mutation without ``old`` is still to be written.
    """

    name: str
    old: str = ""
    new: str = ""
    tests: tuple[str, ...] = ()


MUTATIONS = (
    Mutation(
        "rollout: rows are not normalised",
        "return mixed / mixed.sum(1, keepdim=True)",
        "return mixed",
        ("tests/analyzers/test_rollout.py",),
    ),
    Mutation(
        "sinks: more than half of the layers, not half",
        ".sum(0) >= PERSISTENCE *",
        ".sum(0) > PERSISTENCE *",
        ("tests/analyzers/test_sinks.py",),
    ),
    Mutation(
        "explained: a generated token's own row, not the one that predicted it",
        "position - (position >=",
        "position - 0 * (position >=",
        ("tests/analyzers/test_attention.py",),
    ),
    Mutation(
        "ranks: ties take the last of their ranks, not the mean",
        "counts.cumsum() - (counts - 1) / 2",
        "counts.cumsum()",
        ("tests/evaluate/test_ranks.py",),
    ),
    Mutation(
        "batch: every sample reads the first row",
        "beams is not None else [row] * length",
        "beams is not None else [0] * length",
        ("tests/asking/test_recorder.py::test_batch_members_equal_themselves_alone",),
    ),
    Mutation(
        "beams: a sequence's own row at every step, not its beam's",
        "beams[row, :length].tolist() if beams is not None else",
        "",
        ("tests/asking/test_generation.py::test_beam_scores_sum_to_the_sequence_score",),
    ),
    Mutation(
        "tokens_in: more than half of a box, not half",
        "self.to_tokens(mask) >= 0.5",
        "self.to_tokens(mask) > 0.5",
        ("tests/layout/test_layout.py",),
    ),
    Mutation(
        "peak: the first of tied tokens, not their mean",
        "boxes[(values == values.max()).numpy()].mean(0)",
        "boxes[int(values.argmax())]",
        ("tests/maps/test_maps.py",),
    ),
    Mutation(
        "grouped heads: a head reads another group's keys",
        "key[:, heads // groups]",
        "key[:, heads % key.shape[1]]",
        ("tests/analyzers/test_attention.py",),
    ),
    Mutation(
        "lock: a fresh one each time",
        "return _locks.setdefault(model, threading.RLock())",
        "return threading.RLock()",
        ("tests/asking/test_recorder.py",),
    ),
    Mutation(
        "tower: its windows in another order",
        'runs[-1].append(weights.detach().to("cpu", copy=True))',
        'runs[-1].insert(0, weights.detach().to("cpu", copy=True))',
        ("tests/asking/test_tower.py",),
    ),
    Mutation(
        "layout: a pixel belongs to a box when its corner lies in it, not its centre",
        "np.ceil(self.boxes - 0.5)",
        "np.floor(self.boxes)",
        ("tests/layout/test_layout.py", "tests/maps/test_maps.py"),
    ),
    Mutation(
        "interventions: a knock-out is ignored",
        "call = visitor.attention(call) or call",
        "visitor.attention(call)",
        ("tests/interventions/test_knock_out.py",),
    ),
    Mutation(
        "rows: a flash kernel's lengths (cu_seq_lens) are ignored",
        'lengths = self.kwargs.get("cu_seq_lens_q") if varied else None',
        "lengths = None",
        ("tests/inside/test_rows.py",),
    ),
    Mutation(
        "hooks: they act on passes of other contexts",
        'visits: ContextVar[tuple[Visit, ...]] = ContextVar("llava_probe_visits", default=())',
        'visits = type("All", (), {"a": (), "get": lambda s: s.a, "set": lambda s, a: setattr(s, "a", a)})()',
        ("tests/inside/test_passes.py",),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one mutation: one of four words, how long it took, and the end of what the tests printed."""

    mutation: Mutation
    word: str
    seconds: float = 0.0
    told: str = ""


def where(mutation: Mutation, root: Path = ROOT) -> list[Path]:
    """The files of the package in which its text stands, a file as often as it stands there."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((root / "llava_probe").rglob("*.py"))}
    return [path for path, text in texts.items() for _ in range(text.count(mutation.old))]


def tried(mutation: Mutation, root: Path = ROOT) -> Outcome:
    """Change a copy and run the tests that must fail there."""
    if not mutation.old:
        return Outcome(mutation, UNWRITTEN)
    places = where(mutation, root)
    if len(places) != 1:
        return Outcome(mutation, LOST, told=f"its text stands {len(places)} times in the package: {mutation.old!r}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy(root, Path(folder))
        change(mutation, Path(folder))
        status, told = ran(mutation.tests, Path(folder))
    word = {0: MISSED, 1: CAUGHT, ENDLESS: MISSED}.get(status, LOST)
    return Outcome(mutation, word, time.monotonic() - start, "" if word == CAUGHT else told)


def unchanged(mutations: Sequence[Mutation], root: Path = ROOT) -> str:
    """What the tests of all of them say without any change: nothing, if they pass; who fails anyway catches nothing."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy(root, Path(folder))
        tests = list(dict.fromkeys(test for each in mutations for test in each.tests))
        status, told = ran(tests, Path(folder), PATIENCE * len(mutations))
    return told if status else ""


def copy(root: Path, folder: Path) -> None:
    """Package and tests, without what running them leaves behind."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).exists():
            shutil.copy2(root / name, folder / name)


def change(mutation: Mutation, root: Path) -> None:
    """Put the new text in the place of the old one."""
    (path,) = where(mutation, root)
    path.write_text(path.read_text(encoding="utf-8").replace(mutation.old, mutation.new), encoding="utf-8")


def ran(tests: Sequence[str], root: Path, patience: float = PATIENCE) -> tuple[int, str]:
    """Run tests in a copy: pytest's exit status (1: one failed; more: they could not run) and the end of its output.

    ``ENDLESS`` where there was no end after so many seconds.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", "0", *tests]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    env = {
        **os.environ,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        return ENDLESS, f"no end after {patience} seconds"
    return done.returncode, "\n".join(f"{done.stdout}{done.stderr}".splitlines()[-12:])


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each mutation, with what the tests printed below those that were not caught."""
    lines = []
    for outcome in outcomes:
        lines.append(f"{outcome.word:<15} {outcome.seconds:>5.0f} s  {outcome.mutation.name}")
        lines += [f"{'':<25}{line}" for line in outcome.told.splitlines()]
    return "\n".join(lines)


def main() -> int:
    """Try them; 1 if any was not caught."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("word", nargs="?", default="", help="only those with this in their name")
    parser.add_argument("--list", action="store_true", help="print what each changes, and try nothing")
    asked = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if asked.word in mutation.name]
    if not chosen:
        parser.error(f"no mutation has {asked.word!r} in its name")
    if asked.list:
        print("\n".join(f"{each.name}\n    - {each.old}\n    + {each.new}" for each in chosen))
        return 0
    with ThreadPoolExecutor(PROCESSES) as pool:
        plain = pool.submit(unchanged, chosen)
        outcomes = list(pool.map(tried, chosen))
    print(table(outcomes))
    caught = sum(outcome.word == CAUGHT for outcome in outcomes)
    print(f"{caught} of {len(outcomes)} caught")
    if plain.result():
        print(f"but the same tests fail without any change:\n{plain.result()}")
    return int(caught < len(outcomes) or bool(plain.result()))


if __name__ == "__main__":
    sys.exit(main())
