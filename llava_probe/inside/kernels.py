"""Twins of the kernels: what stands in transformers' tables while attention is looked at or changed.

Attention modules look their kernel up by name at each call, in a table of transformers or in one of their own file; an
eager one is a function of that file. While a pass is visited a twin stands in each of these places, which calls the
kernel itself. A model's config keeps the name that it had, so a model that asks for that name (to build its mask, to
skip work) goes the way that it goes without us.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llava_probe.errors import BadModel
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy
from llava_probe.inside.forks import whole_at_forks
from llava_probe.inside.rows import Call
from llava_probe.inside.scene import PassScene, scenes_here
from llava_probe.inside.undo import Undo, undoing
from llava_probe.inside.visitor import Others, Visitor

#: Makes a twin of a kernel, given its name.
Twin = Callable[[Any, str], Any]

_FLEX = "attention cannot be read beside flex_attention; set_attn_implementation('sdpa') first"

_switching = whole_at_forks(threading.RLock())
_users: dict[tuple[int, str], set[int]] = {}
_kernels: dict[tuple[int, str], Any] = {}
_reachers: set[object] = set()
_reaching = 0  # contexts in which an attention call itself is touched; without any, a compiled graph stays whole


@contextmanager
def twins(anatomy: Anatomy, visitors: Sequence[Visitor], undo: Undo) -> Iterator[None]:
    """Twins of the model's kernels, where some visitor wants to hear of attention.

    Raises:
        BadModel: flex attention, whose block mask cannot be read row by row.
    """
    if not any(visitor.hears("attention") or visitor.hears("attended") for visitor in visitors):
        yield
        return
    with eager_where_unread(
        [module for each in visitors for stack in each.unfused(anatomy) for module in stack.attentions]
    ):
        if any(each.hears("attention") or (each.changes and each.hears("attended")) for each in visitors):
            _reach(undo)
        _put_twins(anatomy.model, undo)
        yield


def put_twin(
    put: Callable[[str, Any], None], place: tuple[int, str], kernel: Callable[[], Any], twin: Twin, undo: Undo
) -> None:
    """Let ``twin(kernel, name)`` stand in a table of transformers until ``undo`` settles.

    Runs of several models share the tables: the first puts the twin there, the last puts the kernel back.

    Args:
        put: writes an entry.
        place: the table (a number of its own) and the entry's name.
        kernel: reads what stands there; asked where nobody has a twin yet.
        twin: makes what does the same and more.
        undo: takes it away.
    """

    def leave() -> None:
        with _switching:
            users = _users.get(place, set())
            users.discard(id(leave))
            if not users and place in _kernels:
                put(place[1], _kernels[place])
                del _kernels[place]

    undo(leave)
    with _switching:
        _users.setdefault(place, set()).add(id(leave))
        if place not in _kernels:
            _kernels[place] = kernel()
            put(place[1], twin(_kernels[place], place[1]))


@contextmanager
def eager_where_unread(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let attention modules that call a kernel of their own, past the tables, compute whole matrices meanwhile."""
    own = [module for module in modules if not seam.reads_interface(module)]
    configs = {id(config): config for module in own if (config := getattr(module, "config", None)) is not None}
    before = [(config, seam.implementation(config)) for config in configs.values()]
    before = [(config, name) for config, name in before if name not in (None, "eager")]
    if before:
        warnings.warn(
            f"{type(own[0]).__name__} does not go through transformers' attention interface, so its layers run in "
            "eager attention while their rows are recorded: time and memory grow with the square of the prompt; "
            "Capture(attention=False) avoids it",
            stacklevel=2,
        )
    with undoing() as undo:
        for config, name in before:
            undo(lambda config=config, name=name: seam.set_implementation(config, name))  # type: ignore[misc]
            seam.set_implementation(config, "eager")
        yield


def _put_twins(model: PreTrainedModel, undo: Undo) -> None:
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    if "flex_attention" in {seam.implementation(config) for config in configs.values()}:
        raise BadModel(_FLEX)
    shared = seam.shared_kernels()
    for name in list(shared):  # all of them: a model may be switched to another kernel meanwhile
        put_twin(seam.register_kernel, (0, name), partial(getitem, shared, name), _twin, undo)
    for table in seam.kernel_tables(model):
        for name in list(table):
            if table[name] is not shared.get(name):
                put_twin(table.__setitem__, (id(table), name), partial(getitem, table, name), _twin, undo)
    for file, name in seam.eager_kernels(model):
        put_twin(file.__setitem__, (id(file), name), partial(getitem, file, name), _eager_twin, undo)


def _reach(undo: Undo) -> None:
    """Attention calls are touched until ``undo`` settles."""
    one = object()

    def count(change: Callable[[object], None]) -> None:
        global _reaching
        with _switching:
            change(one)
            _reaching = len(_reachers)

    undo(lambda: count(_reachers.discard))
    count(_reachers.add)


@cache
def _twin(kernel: Callable[..., Any], name: str) -> Callable[..., Any]:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:  # some towers pass the mask by this name
        if _reaching:
            return _touched(kernel, name, module, query, key, value, attention_mask, kwargs)
        output = kernel(module, query, key, value, attention_mask, **kwargs)
        _looked(name, module, query, key, value, attention_mask, kwargs, output)
        return output  # type: ignore[no-any-return]

    return attention


def _eager_twin(kernel: Callable[..., Any], _name: str) -> Callable[..., Any]:
    return _twin(kernel, "eager")


@torch.compiler.disable
def _looked(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: Others,
    output: tuple[Tensor, Tensor | None],
) -> None:
    if (found := _call(name, module, query, key, value, mask, kwargs)) is not None:
        _attended(*found, output)


@torch.compiler.disable
def _touched(
    kernel: Callable[..., Any],
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: Others,
) -> tuple[Tensor, Tensor | None]:
    found = _call(name, module, query, key, value, mask, kwargs)
    if found is None:
        return kernel(module, query, key, value, mask, **kwargs)  # type: ignore[no-any-return]
    scene, call = found
    for visitor in scene.hearing("attention", call.stack):
        call = visitor.attention(call) or call
    return _attended(scene, call, call.through(kernel))


def _call(
    name: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kwargs: Others
) -> tuple[PassScene, Call] | None:
    """The scene that an attention module belongs to, and its call; None where nobody hears of it."""
    for scene in scenes_here():
        stack, layer = scene.holder(module)
        if not (scene.hearing("attention", stack) or scene.hearing("attended", stack)):
            continue
        if not scene.running(stack):
            return None
        if name == "flex_attention":
            raise BadModel(_FLEX)
        scene.course.routed.add(module)
        return scene, Call(
            module, stack, layer, query, key, value, mask, kwargs, name, **scene.where(stack, query.shape[2])
        )
    return None


def _attended(scene: PassScene, call: Call, output: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    made, weights = output
    if isinstance(weights, Tensor):
        call = replace(call, weights=weights)
    for visitor in scene.hearing("attended", call.stack):
        changed = visitor.attended(call, made)
        made = made if changed is None else changed
    return made, weights
