"""Interventions done with plain hooks of torch on modules found by name: the truth that ours are compared with.

Nothing of the package runs in them. A change is a function of one module's output (or input) in one teacher-forced pass
without a cache.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch


def layers_of(vlm):
    """The blocks of the language model, by their usual names."""
    inner = vlm.model.model
    inner = getattr(inner, "language_model", None) or getattr(inner, "text_model", None)
    return inner.layers


def feed_of(block):
    return getattr(block, "mlp", None) or block.feed_forward


def projection_of(block):
    """What takes the heads' outputs, side by side."""
    return block.self_attn.o_proj


def passed(vlm, trace, changes=(), **more):
    """The outputs of a pass over prompt and answer.

    Args:
        changes: (module, "in" or "out", function): what replaces its first input or its output.
    """
    inputs, _ = vlm.model_inputs(list(trace.images), prompt=trace.request.prompt)
    ids = torch.tensor([[token.id for token in trace.tokens[:-1]]])
    grown = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.shape == inputs["input_ids"].shape and name not in grown:
            grown[name] = torch.nn.functional.pad(value, (0, ids.shape[1] - value.shape[1]))
    with ExitStack() as stack, torch.no_grad():
        for module, side, function in changes:
            if side == "in":
                hook = module.register_forward_pre_hook(_before(function), with_kwargs=True)
            else:
                hook = module.register_forward_hook(_after(function))
            stack.callback(hook.remove)
        return vlm.model(**{**inputs, **grown}, use_cache=False, **more)


def _before(function):
    def hook(_module, args, kwargs):
        if args:
            return (function(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": function(kwargs["hidden_states"])}

    return hook


def _after(function):
    def hook(_module, _args, output):
        if isinstance(output, torch.Tensor):
            return function(output)
        return (function(output[0]), *output[1:])

    return hook


def steps(trace, out):
    """[T, V] the logits that predict the answer."""
    return out.logits[0, trace.prompt_length - 1 :].float()
