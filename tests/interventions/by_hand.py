"""Interventions done with plain hooks of torch on modules found by name: the truth that ours are compared with.

Nothing of the package runs in them. A change is a function of one module's output (or input) in one teacher-forced pass
without a cache; a change of attention is a function of its logits at some pairs, in a dense attention of its own.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

#: Of the dense attention: a function of logits and pairs, the pairs [Q, K], and in which blocks and heads (None: all).
RULED: dict = {"rule": None, "pairs": None, "layers": (), "heads": None}


def dense(module, query, key, value, attention_mask, scaling=None, **_kwargs):
    """softmax(q·kᵀ + mask)·v with the rule between its pairs."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    seen = attention_mask > torch.finfo(attention_mask.dtype).min / 2
    logits = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, float("-inf"))
    weights = torch.softmax(logits, -1)
    if module.layer_idx in RULED["layers"]:
        ruled = RULED["rule"](logits, RULED["pairs"] & seen)
        chosen = list(range(query.shape[1])) if RULED["heads"] is None else RULED["heads"]
        weights[:, chosen] = ruled[:, chosen]
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("ruled_by_hand", dense)
AttentionMaskInterface.register("ruled_by_hand", eager_mask)


@contextmanager
def ruled(vlm, rule, pairs, layers, heads=None):
    """The language model's attention under a rule while the context lasts."""
    config = layers_of(vlm)[0].self_attn.config
    before = config._attn_implementation
    RULED.update(rule=rule, pairs=pairs, layers=tuple(layers), heads=heads)
    config._attn_implementation = "ruled_by_hand"
    try:
        yield
    finally:
        config._attn_implementation = before
        RULED.update(rule=None, pairs=None, layers=(), heads=None)


def hidden(logits, pairs):
    return torch.softmax(logits.masked_fill(pairs, float("-inf")), -1)


def spread(logits, pairs):
    weights = torch.softmax(logits, -1)
    share = (weights * pairs).sum(-1, keepdim=True) / pairs.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(pairs, share, weights)


def more_logits(by):
    def rule(logits, pairs):
        return torch.softmax(torch.where(pairs, logits + by * logits.abs(), logits), -1)

    return rule


def more_weight(by):
    def rule(logits, pairs):
        weights = torch.softmax(logits, -1)
        return torch.where(pairs, weights * (1 + by), weights)

    return rule


def moved(by):
    def rule(logits, pairs):
        weights = torch.softmax(logits, -1)
        own, rest = (weights * pairs).sum(-1, keepdim=True), (weights * ~pairs).sum(-1, keepdim=True)
        given = by * rest if by > 0 else by * own
        made = torch.where(pairs, weights * (own + given) / own, weights * (rest - given) / rest)
        return torch.where((own > 0) & (rest > 0), made, weights)

    return rule


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
