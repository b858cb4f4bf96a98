"""What a model makes of any hidden state: its final norm, its output embedding and whatever it does to its logits.

    ending = Ending(vlm.anatomy, token=17)
    ending.logits(states)                    # [n, V] of states as blocks give them
    ending.logits(last, normed=True)         # of states behind the final norm

Families scale their logits, cap them, rule words out, add up several streams before the norm, or have no norm, and each
calls its setting something else. So nothing of that is written down here: the model itself runs, on words that nobody
reads, and the states are put where its last block would have given them, its blocks left out. What comes out is what it
would have said, in its own numbers, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llava_probe.errors import BadModel, first_line
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.passes import Visitor, instead, visiting

#: Words of the one pass that shows in which form blocks give their states.
_SHOWN = 2


class Ending:
    """The way from a model's last block to its logits.

    Args:
        anatomy: of the model.
        token: the id of a word that stands for no picture: what it is does not matter.

    Raises:
        BadModel: the model has no output embedding.
    """

    def __init__(self, anatomy: Anatomy, token: int) -> None:
        self._anatomy, self._token = anatomy, token
        self._model = _innermost(anatomy)

    def logits(self, states: Tensor, *, normed: bool = False) -> Tensor:
        """[n, V] in float32 at least, on the model's device; with a graph where the states have one.

        Args:
            states: [n, D], or [n, streams, D] of a model whose layers carry several.
            normed: whether they are behind the final norm, as the last hidden state is.

        Raises:
            BadModel: states of another form than this model's.
        """
        put, instead_of = (
            _Put(self._anatomy, states if normed else None),
            [_handing_on(form) for _, form in self._forms],
        )
        if not normed:
            form = self._forms[-1][1]
            given = _with(form, _shaped(states, _first(form)))
            instead_of[-1] = lambda *_, **__: given
        with ExitStack() as standing, visiting(self._anatomy, put, apart=True):
            for (block, _), give in zip(self._forms, instead_of, strict=True):
                standing.enter_context(instead(block, give))
            logits = self._run(len(states))
        if logits.shape[:-1] != (1, len(states)):
            raise BadModel(f"{type(self._model).__name__} gives no logits of single states, so a lens cannot read it")
        return logits[0].to(torch.promote_types(logits.dtype, torch.float32))

    @cached_property
    def _forms(self) -> Sequence[tuple[nn.Module, Any]]:
        """The blocks that run over words alone, and what each gives: states, or these and more in a form of its own."""
        forms: list[tuple[nn.Module, Any]] = []

        def noted_at(block: nn.Module) -> Callable[..., Any]:
            def noting(inside: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                forms.append((block, inside(*args, **kwargs)))
                return forms[-1][1]

            return noting

        with ExitStack() as standing, visiting(self._anatomy, apart=True), torch.no_grad():
            for block in self._anatomy.decoder.blocks:
                standing.enter_context(instead(block, noted_at(block)))
            try:
                self._run(_SHOWN)
            except (TypeError, ValueError) as error:
                told = f"{type(self._model).__name__} does not run on words alone, so no lens reads its layers"
                raise BadModel(f"{told} ({first_line(error)})") from error
        return forms

    @property
    def _device(self) -> torch.device:
        """Where ids go: to the embedding, wherever ``device_map`` put it."""
        embedding = self._model.get_input_embeddings()
        device = next(embedding.parameters()).device
        return (seam.offload_device(embedding) or torch.device("cpu")) if device.type == "meta" else device

    def _run(self, words: int) -> Tensor:
        ids = torch.full((1, words), self._token, device=self._device)
        told = {"attention_mask": torch.ones_like(ids), "use_cache": False, **self._anatomy.everywhere}
        return self._model(input_ids=ids, **told).logits  # type: ignore[no-any-return]


class _Put(Visitor):
    """Puts states in the place of the last one, behind the final norm."""

    changes = True

    def __init__(self, anatomy: Anatomy, states: Tensor | None) -> None:
        self._last, self._states = anatomy.layers, states

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> Tensor | None:
        """The given ones, where it is the last."""
        return None if layer != self._last or self._states is None else _shaped(self._states, hidden)


def _innermost(anatomy: Anatomy) -> Any:
    """The innermost model that holds both the decoder and the output embedding: what is around it is for pictures."""
    head, owner = anatomy.output_embedding, anatomy.decoder.owner
    if head is None:
        raise BadModel(f"{type(anatomy.model).__name__} has no output embedding, so its layers say no words")
    parts = [part for part in anatomy.model.modules() if isinstance(part, PreTrainedModel)]
    return [part for part in parts if {owner, head} <= {*part.modules()}][-1]


def _handing_on(form: Any) -> Callable[..., Any]:
    """A block that gives the states that it is given."""

    def give(_inside: Any, *args: Any, **kwargs: Any) -> Any:
        return _with(form, args[0] if args else kwargs["hidden_states"])

    return give


def _shaped(states: Tensor, like: Tensor) -> Tensor:
    """States [n, ...] as [1, n, ...], or with their streams first, where the model has them so."""
    shaped = states[None].to(like.device, like.dtype)
    if like.ndim == 4 and like.shape[1:3] == (1, _SHOWN):
        shaped = shaped.movedim(2, 0)
    if shaped.ndim != like.ndim or shaped.shape[-1] != like.shape[-1]:
        raise BadModel(
            f"these hidden states are {list(states.shape[1:])} a token, and those of the last layers of this model "
            f"{[like.shape[-1]] if like.ndim == 3 else [*like.shape[2:]]}: no lens reads them"
        )
    return shaped


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]  # type: ignore[no-any-return]


def _with(form: Any, states: Tensor) -> Any:
    """States in the form in which a block gives them."""
    if isinstance(form, Tensor):
        return states
    if isinstance(form, tuple):
        return (states, *form[1:])
    made = copy(form)
    made[next(iter(made))] = states
    return made
