"""The hooks through which a pass of a model is told to its visitors.

A hook holds no visitor: it looks up who is there, so a compiled graph that was traced with it serves the next run too,
and a pass in another context goes by unseen. The first context that needs a kind of hook puts it on a model, the last
takes it off, whoever's they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llava_probe.errors import BadModel
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.forks import whole_at_forks
from llava_probe.inside.scene import Enough, PassScene, scene_of
from llava_probe.inside.undo import Undo
from llava_probe.inside.visitor import Others, Visitor

#: ``until=`` of a pass that ends before the first block of the decoder.
ENTRY = -1


class _Hook:
    """One of our hooks: a class of its own, so that one whose handle was lost can be told from others'.

    A copy of a model that is made meanwhile takes over a hook that does nothing.
    """

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return None if self._call is None else self._call(*args, **kwargs)

    def __deepcopy__(self, _memo: Any) -> _Hook:
        return _Hook()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, ()


@dataclass
class _Put:
    """The hooks of one kind on one model: who needs them, how they come off, and whether all of them are on."""

    users: set[object] = field(default_factory=set)
    handles: list[RemovableHandle] = field(default_factory=list)
    whole: bool = False


_put: WeakKeyDictionary[nn.Module, dict[Any, _Put]] = WeakKeyDictionary()
_putting = whole_at_forks(threading.RLock())

#: A module, whether the hook comes before it, and the hook.
_Wanted = tuple[nn.Module, bool, Callable[..., Any]]


def put_hooks(anatomy: Anatomy, visitors: Sequence[Visitor], until: int | None, undo: Undo) -> None:
    """Hooks for what visitors want to hear of, where there are none yet; ``undo`` takes off what nobody needs then."""
    for kind, wanted in _wanted(anatomy, visitors, until):
        _put_on(anatomy.model, kind, wanted, undo)


def _put_on(model: nn.Module, kind: Any, wanted: Sequence[_Wanted], undo: Undo) -> None:
    user = object()

    def leave() -> None:
        with _putting:
            kinds = _put.get(model, {})
            if (held := kinds.get(kind)) is None:
                return
            held.users.discard(user)
            if held.users:
                return
            for handle in held.handles:
                handle.remove()
            if not held.whole:  # an interrupt came while they were put on
                for module, _, _ in wanted:
                    seam.strip_hooks(module, _Hook)
            del kinds[kind]

    undo(leave)
    with _putting:
        held = _put.setdefault(model, {}).setdefault(kind, _Put())
        held.users.add(user)
        if held.whole:
            return
        for module, first, hook in wanted:
            if first:
                held.handles.append(module.register_forward_pre_hook(_Hook(hook), with_kwargs=True))
            else:
                held.handles.append(module.register_forward_hook(_Hook(hook)))
        held.whole = True


def _wanted(anatomy: Anatomy, visitors: Sequence[Visitor], until: int | None) -> Iterator[tuple[Any, list[_Wanted]]]:
    """The hooks that visitors need, by kind."""
    model, decoder = anatomy.model, anatomy.decoder
    yield "passes", list(_pass_hooks(anatomy))
    if until is not None:
        yield ("state", id(decoder)), list(_state_hooks(anatomy, decoder))
    for stack in (anatomy.decoder, anatomy.vision):
        mine = [visitor for visitor in visitors if any(stack is one for one in visitor.stacks(anatomy))]
        if stack is None or not mine:
            continue
        if any(visitor.hears("state") for visitor in mine):
            yield ("state", id(stack)), list(_state_hooks(anatomy, stack))
        if any(visitor.hears("attended") for visitor in mine):
            weights = _weights_hook(model, stack)
            yield ("weights", id(stack)), [(module, False, weights) for module in stack.attentions]
        if any(visitor.hears("part") for visitor in mine):
            for kind, parts in (("attention", stack.attentions), ("mlp", stack.feeds)):
                part = _part_hook(model, stack, kind)
                yield (kind, id(stack)), [(module, False, part) for module in parts]
    for visitor in visitors:
        for module in visitor.modules(anatomy):
            if visitor.hears("before"):
                yield ("before", id(module)), [(module, True, _before_hook(model))]
            if visitor.hears("after"):
                yield ("after", id(module)), [(module, False, _after_hook(model))]


# --- each kind: which modules, and what is told ---


def _pass_hooks(anatomy: Anatomy) -> Iterator[_Wanted]:
    model, owner = anatomy.model, anatomy.decoder.owner
    for outer in {id(one): one for one in (model, anatomy.generator)}.values():
        yield outer, True, lambda _module, args, kwargs: _given(model, args, kwargs)
        yield outer, False, lambda _module, _args, output: _judged(model, output)
    yield owner, True, lambda _module, args, kwargs: _entering(model, args, kwargs)
    yield owner, False, lambda _module, _args, output: _left(model, output)


def _state_hooks(anatomy: Anatomy, stack: Stack) -> Iterator[_Wanted]:
    """Hidden state 0 is the first block's input, ``i + 1`` the output of block ``i``."""
    model = anatomy.model
    yield stack.blocks[0], True, lambda _module, args, kwargs: _begun(model, stack, args, kwargs)
    blocks = stack.blocks[:-1] if stack is anatomy.decoder else stack.blocks  # its last comes behind the final norm
    for index, block in enumerate(blocks):
        yield block, False, _state_hook(model, stack, index + 1)


def _state_hook(model: nn.Module, stack: Stack, layer: int) -> Callable[..., Any]:
    return lambda _module, _args, output: _passed(model, stack, layer, output)


def _weights_hook(model: nn.Module, stack: Stack) -> Callable[..., Any]:
    return lambda module, _args, output: _weighed(model, stack, module, output)


def _part_hook(model: nn.Module, stack: Stack, kind: str) -> Callable[..., Any]:
    return lambda module, _args, output: _added(model, stack, kind, module, output)


def _before_hook(model: nn.Module) -> Callable[..., Any]:
    return lambda module, args, kwargs: _before(model, module, args, kwargs)


def _after_hook(model: nn.Module) -> Callable[..., Any]:
    return lambda module, args, output: _after(model, module, args, output)


@torch.compiler.disable
def _given(model: nn.Module, args: Any, kwargs: Others) -> None:
    if (scene := scene_of(model)) is not None:
        scene.course.give(
            kwargs.get("input_ids", args[0] if args else None),
            kwargs.get("attention_mask"),
            grows=kwargs.get("use_cache") is False,
        )


@torch.compiler.disable
def _entering(model: nn.Module, args: Any, kwargs: Others) -> tuple[Any, Others] | None:
    scene = scene_of(model)
    if scene is None or scene.course.begin(*_sizes(args, kwargs)) is None:
        return None
    if in_force := [visitor for visitor in scene.visitors if visitor.told() is not None]:
        _refuse_recomputation(scene, in_force[0])
    others = {name: value for name, value in kwargs.items() if name != "inputs_embeds"}
    embeddings, changed = kwargs.get("inputs_embeds"), False
    for visitor in scene.hearing("entry"):
        if (made := visitor.entry(embeddings, others)) is not None:
            (embeddings, others), changed = made, True
    if scene.visit.until == ENTRY:
        raise Enough(scene.visit)
    if embeddings is not None:
        others = {**others, "inputs_embeds": embeddings}
    span = scene.course.entered(*_sizes(args, others))
    for visitor in scene.hearing("begin"):
        visitor.begin(span)
    for visitor in () if embeddings is None else scene.hearing("embedded"):
        if (entered := visitor.embedded(span, others["inputs_embeds"])) is not None:
            others, changed = {**others, "inputs_embeds": entered}, True
    return (args, others) if changed else None


def _refuse_recomputation(scene: PassScene, visitor: Visitor) -> None:
    """Blocks that are computed again when nobody knows any more in which pass would be computed otherwise."""
    blocks = scene.anatomy.decoder.blocks
    if torch.is_grad_enabled() and any(seam.recomputes(block) for block in blocks):
        raise BadModel(
            f"{visitor!r} would not reach blocks that gradient checkpointing computes again in the backward pass; "
            "call model.gradient_checkpointing_disable(), or model.eval()"
        )


def _sizes(args: Any, kwargs: Mapping[str, Any]) -> tuple[int, int, Any]:
    """Rows and columns that the decoder is given, and its cache."""
    named = (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1])
    given = next(tensor for tensor in named if tensor is not None)
    return given.shape[0], given.shape[1], kwargs.get("past_key_values")


@torch.compiler.disable
def _begun(model: nn.Module, stack: Stack, args: Any, kwargs: Others) -> tuple[Any, Others] | None:
    made = _seen(scene_of(model), stack, 0, args[0] if args else kwargs["hidden_states"])
    if made is None:
        return None
    return ((made, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": made})


@torch.compiler.disable
def _passed(model: nn.Module, stack: Stack, layer: int, output: Any) -> Any:
    return _with(output, _seen(scene_of(model), stack, layer, _first(output)))


@torch.compiler.disable
def _left(model: nn.Module, output: Any) -> Any:
    scene = scene_of(model)
    if scene is None or scene.course.span is None:
        return None
    made = _seen(scene, scene.anatomy.decoder, scene.anatomy.layers, _first(output))
    scene.course.end()
    return _with(output, made)


def _seen(scene: PassScene | None, stack: Stack, layer: int, hidden: Tensor) -> Tensor | None:
    """What visitors make of a hidden state; None where they leave it."""
    if scene is None or not scene.running(stack):
        return None
    made: Tensor | None = None
    for visitor in scene.hearing("state", stack):
        if (changed := visitor.state(stack, layer, hidden)) is not None:
            hidden = made = changed
    if stack is scene.anatomy.decoder and scene.visit.until == layer:
        raise Enough(scene.visit)
    return made


@torch.compiler.disable
def _added(model: nn.Module, stack: Stack, kind: str, module: nn.Module, output: Any) -> Any:
    scene = scene_of(model)
    if scene is None or not scene.running(stack):
        return None
    layer = (stack.attentions if kind == "attention" else stack.feeds)[module]
    made, given = None, _first(output)
    for visitor in scene.hearing("part", stack):
        if (changed := visitor.part(stack, kind, layer, given)) is not None:
            given = made = changed
    return _with(output, made)


@torch.compiler.disable
def _weighed(model: nn.Module, stack: Stack, module: nn.Module, output: Any) -> None:
    """An attention module that called no twin: what it gives of its own weights is all that can be known of it."""
    scene = scene_of(model)
    if scene is None or not scene.running(stack):
        return
    if module in scene.course.routed:
        scene.course.routed.discard(module)
        return
    weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    call = scene.unrouted(module, stack, weights if isinstance(weights, Tensor) else None)
    for visitor in scene.hearing("attended", stack):
        visitor.attended(call, None)


@torch.compiler.disable
def _before(model: nn.Module, module: nn.Module, args: Any, kwargs: Others) -> tuple[Any, Others] | None:
    scene, changed = scene_of(model), False
    for visitor in () if scene is None else scene.hearing("before", of=module):
        if (made := visitor.before(module, args, kwargs)) is not None:
            (args, kwargs), changed = made, True
    return (args, kwargs) if changed else None


@torch.compiler.disable
def _after(model: nn.Module, module: nn.Module, args: Any, output: Any) -> Any:
    scene, made = scene_of(model), None
    for visitor in () if scene is None else scene.hearing("after", of=module):
        if (changed := visitor.after(module, args, output)) is not None:
            output = made = changed
    return made


@torch.compiler.disable
def _judged(model: nn.Module, output: Any) -> Any:
    scene, logits = scene_of(model), getattr(output, "logits", None)
    if scene is None:
        return None
    scene.course.adopt(getattr(output, "past_key_values", None))
    if logits is None or scene.course.span is None or not scene.course.open:
        return None
    scene.course.open = False
    made = None
    for visitor in scene.hearing("end"):
        if (changed := visitor.end(scene.course.span, logits)) is not None:
            logits = made = changed
    if made is None:
        return None
    output["logits"] = made
    return output


def _first(output: Any) -> Tensor:
    """The states among what a block gives: alone, or ahead of others."""
    return output if isinstance(output, Tensor) else output[0]  # type: ignore[no-any-return]


def _with(output: Any, made: Tensor | None) -> Any:
    """A block's output with other states; None where these are to stay."""
    if made is None or isinstance(output, Tensor):
        return made
    if isinstance(output, tuple):
        return (made, *output[1:])
    output[next(iter(output))] = made
    return output
