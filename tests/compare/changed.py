"""Copies of a model in which one head is another."""

import torch

import llava_probe as lp


def with_a_head_changed(layer, head, *, weight="o_proj", factor=-3.0):
    """The tiny model with the weights of one head multiplied, in place of what it learnt."""
    vlm = lp.load()
    attention = vlm.model.model.language_model.layers[layer].self_attn
    own = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    with torch.no_grad():
        matrix = getattr(attention, weight).weight
        part = matrix[:, own] if weight == "o_proj" else matrix[own]
        part.mul_(factor)
    return vlm
