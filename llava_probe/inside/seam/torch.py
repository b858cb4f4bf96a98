"""Private parts of torch: subclasses of tensors, the names of operations in a graph, hooks, modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn import Buffer, Parameter, functional

# --- tensors that are not what they seem ---


def shown_as(kind: type, like: Tensor) -> Any:
    """A tensor of a subclass that has the shape, dtype and memory of another."""
    return Tensor._make_subclass(kind, like)


def as_plain_tensor(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a function of torch gives for a tensor of a subclass that stands aside for once."""
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def version(tensor: Tensor) -> int | None:
    """How often a tensor was written to in place; None where none is kept (made in inference mode)."""
    return None if tensor.is_inference() else tensor._version


def inner_tensors(tensor: Tensor) -> dict[str, Tensor]:
    """The plain tensors that a subclass with numbers of its own is made of (torchao's, distributed ones), by name."""
    if type(tensor) in (Tensor, Parameter, Buffer) or not hasattr(tensor, "__tensor_flatten__"):
        return {}
    names, _ = tensor.__tensor_flatten__()
    return {name: getattr(tensor, name) for name in names}


def writes(operator: Any) -> bool:
    """Whether an operator, as ``__torch_dispatch__`` is given it, changes one of its arguments."""
    return bool(operator._schema.is_mutable)


# --- operations, as a function mode sees them ---


def fused_attention_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...] | None:
    """Query, key and value, where a call is one of torch's fused attention; None of any other."""
    if func is not functional.scaled_dot_product_attention:
        return None
    return tuple(args[i] if i < len(args) else kwargs[name] for i, name in enumerate(("query", "key", "value")))


def is_softmax(func: Any) -> bool:
    """Whether a function is one of torch's softmaxes."""
    return func in (torch.softmax, functional.softmax, Tensor.softmax)


# --- operations, as a graph names them ---


def operation(node: Node) -> str:
    """``"Mul"`` of ``MulBackward0``; the class's name of a function of one's own."""
    return node.name().rpartition("Backward")[0] or node.name().rpartition("::")[2]


def made_of(node: Node) -> list[Node | None]:
    """The nodes that each argument of an operation is from; None for what is not in the graph."""
    return [following for following, _ in node.next_functions]


def is_linear(node: Node) -> bool:
    """Whether an operation is linear in what the graph gives it."""
    return operation(node) in {
        *("AccumulateGrad", "Add", "Sub", "Neg", "Sum", "Mean", "ToCopy", "Clone", "Alias"),
        *("T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Expand", "Repeat", "Squeeze"),
        *("Unsqueeze", "Slice", "Select", "Split", "SplitWithSizes", "Unbind", "Cat", "Stack"),
        *("ViewAsComplex", "ViewAsReal"),
    }


def is_product(node: Node) -> bool:
    """Whether an operation is linear in each of two things."""
    return operation(node) in {"Mul", "Bmm", "Mm", "Addmm", "Div"}


def divides(node: Node) -> bool:
    """Whether an operation divides by something in the graph."""
    return operation(node) == "Div" and any(following is not None for following in made_of(node)[1:2])


def is_cut(output: Tensor) -> bool:
    """Whether the graph ends at a tensor that was made of something in it: a quantised product, say."""
    return output.grad_fn is None or "NotImplemented" in output.grad_fn.name()


# --- hooks and modes ---


def is_compiled(model: nn.Module) -> bool:
    """Whether passes of a model may run in a graph that was traced before, without hooks that came later."""
    forwards = (part for module in model.modules() if (part := vars(module).get("forward")) is not None)
    compiled = (getattr(module, "_compiled_call_impl", None) for module in model.modules())
    return any(hasattr(one, "_torchdynamo_orig_callable") for one in forwards) or any(compiled)


def strip_hooks(module: nn.Module, ours: type) -> None:
    """Take off hooks of one class whose handles were lost, as when an interrupt came while they were put on."""
    for table in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in list(table.items()) if isinstance(hook, ours)]:
            table.pop(key, None)
            for flags in (
                module._forward_hooks_with_kwargs,
                module._forward_hooks_always_called,
                module._forward_pre_hooks_with_kwargs,
            ):
                flags.pop(key, None)


def modes_as_now() -> Callable[[], None]:
    """How to make torch's modes what they are now: an interrupt can come between a mode's start and its end.

    They are: whether gradients are kept, what sees each function that is called, what sees each tensor that is saved.
    """
    gradients, functions = torch.is_grad_enabled(), torch._C._len_torch_function_stack()
    top, pop = torch._C._autograd._top_saved_tensors_default_hooks, torch._C._autograd._pop_saved_tensors_default_hooks
    saving = top(False)

    def restore() -> None:
        while (hooks := top(False)) is not None and hooks != saving:
            pop()
        while torch._C._len_torch_function_stack() > functions:  # first: what is left of them would see the next line
            torch._C._pop_torch_function_stack()
        torch._C._set_grad_enabled(gradients)

    return restore
