"""Adapters of the tiny model, as training would leave them: random updates, written by PEFT itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import llava_probe as lp
from llava_probe import tiny

PROJECTOR = "model.multi_modal_projector"
DECODER = r".*language_model.*\.(q_proj|v_proj|gate_proj)"

#: What PEFT takes for "no module", where modules are only saved whole.
NOWHERE = "dummy-target-modules"


def lora(**settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 4, "target_modules": DECODER, **settings})


def trained(config: peft.LoraConfig | None = None, *, size: float = 0.05, seed: int = 1, base: Any = None) -> Any:
    """The tiny model with a new adapter whose zeros, and modules saved whole, are moved by random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(base or lp.load().model, config or lora()).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if any(part in name for part in ("lora_B", "modules_to_save", "lora_embedding", "tokens_delta")):
                    parameter.add_(size * torch.randn_like(parameter))
    return model


def row() -> dict[str, Tensor]:
    """Inputs of one row: a scene, a question."""
    scene = tiny.scene(3)
    return lp.load().model_inputs(scene.image, scene.questions[0].question)[0]


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """The adapter's file after ``change`` of its tensors."""
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    return folder


def configured(folder: Path, **settings: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder
