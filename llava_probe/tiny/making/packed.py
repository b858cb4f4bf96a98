"""The model's forward pass for packed samples, on the same weights and with the same result as transformers' own.

A packed sample is the picture's prefix, the same for every sample but for the features, and text in groups that do not
see each other. Written out, that saves what the general forward cannot know: the prefix needs no mask but the causal
one, in the last layer it needs keys and values only, and attention as two matrix products is what compiles best on a
CPU. A test holds it against transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from llava_probe.tiny.making.batches import CLASSES, KINDS_OF_PATCH


class PatchReader(nn.Module):
    """Linear heads that read from a patch's feature what the patch shows; used in training only."""

    def __init__(self, width: int):
        super().__init__()
        self.classes = nn.Linear(width, sum(CLASSES.values()))
        self.offset = nn.Linear(width, 2)

    def forward(self, features: Tensor, patches: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the share of object patches read right for each of ``KINDS_OF_PATCH``."""
        logits = self.classes(features).float()
        shown = patches[..., 0] > 0
        # Nine patches in ten are background: a tenth of the weight for them is enough.
        weight = torch.where(shown, 1.0, 0.1)
        loss, right, start = torch.zeros(()), [], 0
        for i, kind in enumerate(KINDS_OF_PATCH):
            part = logits[..., start : start + CLASSES[kind]]
            start += CLASSES[kind]
            target = patches[..., i]
            each = nn.functional.cross_entropy(part.flatten(0, 1), target.flatten(), reduction="none")
            loss = loss + (each.view_as(weight) * weight).sum() / weight.sum()
            asked = target > 0
            right.append((asked & (part.argmax(-1) == target)).sum() / asked.sum().clamp(min=1))
        error = (self.offset(features).float() - offsets).square().sum(-1)
        return loss + 4 * (error * shown).sum() / shown.sum(), torch.stack(right)


def visual_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Features [B, 196, width] of the layer before the last, as ``vision_feature_layer=-2`` chooses them.

    Args:
        model: gives the vision tower.
        pixels: [B, 112, 112, 3] uint8.
    """
    tower = model.model.vision_tower
    pictures = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    hidden = tower.pre_layrnorm(tower.embeddings(pictures))
    for layer in tower.encoder.layers[:-1]:
        attention = layer.self_attn
        normed = layer.layer_norm1(hidden)
        query, key, value = (
            _heads(project(normed), attention.head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = _attend(query, key, value, attention.scale, None)
        hidden = hidden + attention.out_proj(mixed)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return hidden[:, 1:]


def answer_logits(model: LlavaForConditionalGeneration, features: Tensor, prefix: Tensor, batch: dict) -> Tensor:
    """Logits [B, text, vocabulary] at every text position of packed samples.

    Args:
        model: gives projector and language model.
        features: [B, 196, width] from ``visual_features``.
        prefix: [prefix] token ids, the picture's placeholders among them.
        batch: ``tokens``, ``positions`` and ``groups``, each [B, text].
    """
    language = model.model.language_model
    embed = language.embed_tokens
    length = len(prefix)
    picture = model.model.multi_modal_projector(features)
    opening = embed(prefix)[None].expand(len(features), -1, -1)
    picture_at = length - 1 - picture.shape[1]  # only a line break stands between the picture and the text
    text = embed(batch["tokens"])
    hidden = torch.cat((opening[:, :picture_at], picture.to(text.dtype), opening[:, -1:], text), 1)

    positions = torch.arange(length, device=prefix.device).expand(len(features), -1)
    cos, sin = language.rotary_emb(hidden, torch.cat((positions, batch["positions"]), 1))
    masks = _masks(length, batch["groups"], hidden.dtype)
    for layer in language.layers[:-1]:
        hidden = _block(layer, hidden, cos, sin, masks, length)
    hidden = _block(language.layers[-1], hidden, cos, sin, masks, length, text_only=True)
    return model.lm_head(language.norm(hidden)).float()


def _masks(length: int, groups: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Additive masks: [prefix, prefix], causal, and [B, 1, text, prefix + text], prefix and own group's past."""
    lowest = torch.finfo(dtype).min
    causal = torch.full((length, length), lowest, dtype=dtype, device=groups.device).triu(1)
    size = groups.shape[1]
    own = (groups[:, :, None] == groups[:, None, :]) & torch.ones(size, size, device=groups.device).tril().bool()
    inside = torch.zeros(own.shape, dtype=dtype, device=groups.device).masked_fill(~own, lowest)
    return causal, nn.functional.pad(inside, (length, 0))[:, None]


def _block(layer, hidden, cos, sin, masks, length, text_only=False) -> Tensor:
    """One Llama layer; with ``text_only`` the prefix gives keys and values, and only text comes out."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    asking = normed[:, length:] if text_only else normed
    query = _heads(attention.q_proj(asking), attention.head_dim)
    key, value = (_heads(project(normed), attention.head_dim) for project in (attention.k_proj, attention.v_proj))
    if text_only:
        query, _ = apply_rotary_pos_emb(query, query, cos[:, length:], sin[:, length:])
        _, key = apply_rotary_pos_emb(key, key, cos, sin)
        mixed = _attend(query, key, value, attention.scaling, masks[1])
        hidden = hidden[:, length:]
    else:
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        looking, seen, read = (part[:, :, :length] for part in (query, key, value))
        mixed = torch.cat(
            (
                _attend(looking, seen, read, attention.scaling, masks[0]),
                _attend(query[:, :, length:], key, value, attention.scaling, masks[1]),
            ),
            1,
        )
    hidden = hidden + attention.o_proj(mixed)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _heads(states: Tensor, width: int) -> Tensor:
    """[B, length, heads × width] to [B, heads, length, width]."""
    return states.unflatten(-1, (-1, width)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    scores = query @ key.transpose(-1, -2) * scaling
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).transpose(1, 2).flatten(2)
