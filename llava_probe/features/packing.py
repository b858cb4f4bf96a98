"""Keeps the questions of a pack apart: each sees the shared prefix and itself, and stands where it would stand alone.

A family says which token may see which by a rule over indices (causal, a window, blocks of a picture that see both
ways), which transformers turns into a mask in one place, its table of mask functions. While a pack runs, the entry is
a twin: it evaluates the family's own rule at the indices that the tokens have in their own sequences, and hides the
branches from each other. One mask for each kind of layer, whatever the rule. Positions are restarted by the same
indices. Nothing of a family is written down here.

Where that cannot be exact (a prefix that reads the question, layers that carry a state along the sequence, a kernel
that takes no mask), the family is not packed; ``trial.py`` also compares one pack with the plain pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from operator import getitem
from typing import Any

import torch
from torch import Tensor

from llava_probe.errors import BadModel
from llava_probe.features.packs import Pack
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy
from llava_probe.inside.kernels import put_twin
from llava_probe.inside.passes import Others, Visitor
from llava_probe.inside.undo import undoing

#: Implementations whose kernels take a mask of any shape.
MASKABLE = ("sdpa", "eager")

_running: ContextVar[_Apart | None] = ContextVar("llava_probe_packing", default=None)


class Unpackable(BadModel):
    """A family whose questions cannot share a prefix exactly; the message says why."""


@dataclass
class _Apart:
    """What the twin of the mask function needs.

    Attributes:
        elsewhere: the vision tower's config, whose masks are not ours.
        origin: [B, S] the index of each token in its own sequence.
        visible: [B, S, S] whether a query's branch may see a key at all.
        ahead: [B, S, S] whether a token of the prefix would look at a question.
        calls: how many masks were made.
    """

    elsewhere: Any
    origin: Tensor
    visible: Tensor
    ahead: Tensor
    calls: int = 0


def refusal(anatomy: Anatomy) -> str | None:
    """Why a family cannot be packed, as far as its parts tell; None where nothing speaks against it."""
    name = type(anatomy.model).__name__
    if anatomy.other_layers:
        return f"{name} has layers without attention, which carry a state from one question to the next"
    implementation = seam.implementation(anatomy.decoder.owner.config)
    if implementation not in MASKABLE:
        return f"{implementation} takes no mask of packed questions; load with attn_implementation='sdpa'"
    if "position_ids" not in inspect.signature(anatomy.decoder.owner.forward).parameters:
        return f"{name} takes no positions, so they cannot be restarted for each question"
    return None


@contextmanager
def apart(anatomy: Anatomy, packs: Sequence[Pack], width: int) -> Iterator[tuple[Visitor, ...]]:
    """What visits a forward pass of these packs, padded to ``width``, so that it keeps their branches apart.

    Raises:
        Unpackable: the family's rule lets the prefix see a question, or no mask was made the known way.
    """
    owner = anatomy.decoder.owner
    elsewhere = None if anatomy.vision is None else anatomy.vision.owner.config
    state = _Apart(elsewhere, *_indices(packs, width, next(owner.parameters()).device))
    name = seam.implementation(owner.config)
    table = seam.mask_table()
    with undoing() as undo:
        before = _running.get()
        undo(lambda: _running.set(before))
        _running.set(state)
        put_twin(seam.register_mask, (id(table), name), partial(getitem, table, name), _twin, undo)
        yield (_Restarted(state.origin),)
    if not state.calls:
        raise Unpackable(f"{type(anatomy.model).__name__} makes its masks in a way of its own")


def _indices(packs: Sequence[Pack], width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    origin = torch.arange(width).repeat(len(packs), 1)
    branch = torch.full((len(packs), width), -1)  # -1: padding
    for number, pack in enumerate(packs):
        branch[number, : pack.prefix] = 0
        for ordinal, own in enumerate(pack.branches, start=1):
            branch[number, own.start : own.stop] = ordinal
            origin[number, own.start : own.stop] = torch.arange(pack.prefix, pack.prefix + len(own.own))
    shared = branch == 0
    visible = (branch.unsqueeze(2) == branch.unsqueeze(1)) | shared.unsqueeze(1)
    ahead = shared.unsqueeze(2) & (branch > 0).unsqueeze(1)
    return origin.to(device), visible.to(device), ahead.to(device)


class _Restarted(Visitor):
    """Positions of each branch as behind the prefix: those that the model gave the tokens at their own indices."""

    changes = True

    def __init__(self, origin: Tensor) -> None:
        self._origin = origin

    def entry(self, embeddings: Tensor | None, others: Others) -> tuple[Tensor | None, Others]:
        """The same with positions of its own for each token."""
        given = others.get("position_ids")
        if given is None:
            return embeddings, {**others, "position_ids": self._origin}
        given = given.expand(*given.shape[:-2], *self._origin.shape)
        return embeddings, {**others, "position_ids": given.gather(-1, self._origin.expand(given.shape))}


def _twin(kernel: Callable[..., Any], name: str) -> Callable[..., Any]:
    additive = name == "eager"

    def mask(*args: Any, **kwargs: Any) -> Any:
        state = _running.get()
        asked = seam.mask_asked(kwargs)
        if state is None or asked is None or asked.config is state.elsewhere:
            return kernel(*args, **kwargs)
        if asked.sizes != tuple(state.visible.shape):
            return kernel(*args, **kwargs)
        rule = asked.rule

        def at_home(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return rule(batch, head, state.origin[batch, query], state.origin[batch, key])

        allowed = seam.mask_of(at_home, kwargs, state.origin.device)
        if bool((allowed[:, 0] & state.ahead).any()):
            raise Unpackable("the prompt's beginning reads the question behind it, so it is not the same for two")
        state.calls += 1
        allowed = allowed & state.visible.unsqueeze(1)
        if not additive:
            return allowed
        dtype = asked.dtype
        return torch.where(allowed, torch.zeros((), dtype=dtype, device=allowed.device), torch.finfo(dtype).min)

    return mask
