"""Where the projector starts: each patch's visual token near the embeddings of the words for what the patch shows.

    python -m llava_probe.smol.making.words --out build/smol/words

A language model that reads "red", "circle" and "top left" finds them again. From fresh weights a projector needs
thousands of captions until the language model can tell anything from its tokens; from here some hundreds. Takes
seconds, since the language model does not run: the target of a patch is the sum of the embeddings of its words, the
loss is squared distance over squared length.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from llava_probe.inside import seam
from llava_probe.smol.built import base
from llava_probe.tiny.making.batches import KINDS_OF_PATCH, sample
from llava_probe.tiny.plan import COLOURS, GRID_PLACES, SHAPES, SIGN

#: The seeds start far from those of the tiny model's training and of the questions.
FIRST_SEED = 3_000_000_000

_STEPS, _PICTURES, _LR = 400, 4, 2e-3
_GROUND = " background"
_GROUND_WEIGHT = 0.1  # of a patch that shows nothing: most do

#: The words for each class of a patch, 0 excepted, and how much each kind weighs in the sum.
_WORDS: dict[str, tuple[tuple[str, ...], float]] = {
    "shape": (tuple(f" {shape}" for shape in (*SHAPES, SIGN)), 1.0),
    "colour": (tuple(f" {colour}" for colour in COLOURS), 1.0),
    "letter": (tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), 1.0),
    "index": ((" first", " second", " third", " fourth"), 0.5),
    "place": (tuple(f" {place}" for row in GRID_PLACES for place in row), 0.5),
}


def lead_to_words(out: Path) -> float:
    """Train the projector of the base and write it as an adapter; the last loss."""
    folder = base()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(target_modules=seam.no_targets(), modules_to_save=["model.multi_modal_projector"])
    with seam.under_old_names():
        tuned = get_peft_model(model, config)
    weights = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    tables = _tables(tokenizer, model.get_input_embeddings().weight.detach())
    loss = torch.zeros(())
    for step in range(_STEPS):
        pixels, patches = _drawn(FIRST_SEED + step * _PICTURES)
        target, weight = _targets(patches, tables)
        with torch.no_grad():
            features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        distance = (model.model.multi_modal_projector(features) - target).square().sum(-1)
        loss = (distance * weight).sum() / (target.square().sum(-1) * weight).sum()
        for group in optimizer.param_groups:
            group["lr"] = _LR * (1 - step / _STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tuned.save_pretrained(str(out))
    return loss.item()


def _drawn(first: int) -> tuple[Tensor, Tensor]:
    """Pictures [n, 3, 112, 112] as the tower takes them, and the classes [n, 196, 5] of their patches."""
    encoder: Any = None  # words are for the tiny model's own training
    drawn = [sample(first + number, encoder, text=False) for number in range(_PICTURES)]
    pixels = torch.from_numpy(np.stack([one.pixels for one in drawn])).movedim(-1, 1).float() / 127.5 - 1
    return pixels, torch.from_numpy(np.stack([one.patches for one in drawn]))


def _tables(tokenizer: Any, embedding: Tensor) -> list[Tensor]:
    """For each kind of class [classes, D] what it adds to a target, and last what stands for the ground."""

    def summed(words: str) -> Tensor:
        return embedding[tokenizer(words, add_special_tokens=False).input_ids].sum(0)

    made = []
    for kind in KINDS_OF_PATCH:
        words, weight = _WORDS[kind]
        made.append(weight * torch.stack([torch.zeros(embedding.shape[1]), *map(summed, words)]))
    return [*made, summed(_GROUND)]


def _targets(patches: Tensor, tables: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Targets [n, 196, D] and weights [n, 196] of patches."""
    *kinds, ground = tables
    target = torch.stack([table[patches[..., number]] for number, table in enumerate(kinds)]).sum(0)
    bare = patches[..., 0] == 0
    target[bare] = ground
    return target, torch.where(bare, _GROUND_WEIGHT, 1.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    print(f"loss {lead_to_words(parser.parse_args().out):.3f}")
