"""Makes the weights again: ``python -m llava_probe.tiny.making.train --out llava_probe/tiny/weights``.

About an hour on two CPU cores; a GPU is used where there is one. First the vision tower alone learns to say of each
patch what it shows; then everything learns to answer, in packed samples, while the patches keep being asked about.
Without the first part the language model waits long for features worth attending to. State goes to ``--checkpoints``
every few minutes, and the same command continues from there. At the end the model is measured and its card written.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # idle threads sleep instead of taking the other core's turn

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from llava_probe.tiny.making.batches import PATCHES, Encoder
from llava_probe.tiny.making.card import Facts, write_card
from llava_probe.tiny.making.lanes import BatchStream, Lane, Lanes, run_lanes
from llava_probe.tiny.making.muon import Optimizers
from llava_probe.tiny.making.packed import PatchReader, answer_logits, visual_features
from llava_probe.tiny.making.report import Report
from llava_probe.tiny.making.vocabulary import BOS, EOS, IMAGE_TOKEN, PAD, PATCH, build_processor
from llava_probe.tiny.plan import UNITS
from llava_probe.tiny.scenes import FIRST_TRAINING_SEED

_PATCH_LOSS = 0.3  # weight of the patches' loss while answers are learnt
_LOOK_SEEDS = 100_000_000  # the first part's seeds start so much later, so that no picture serves twice
_MICRO = 8  # pictures that one lane takes at a time
_LOG_EVERY = 50
_SAVE_SECONDS = 240


@dataclass(frozen=True)
class Part:
    """One part of the training: how many pictures, and its learning rate from start to end."""

    name: str
    pictures: int
    lr: float
    last_lr: float
    minutes: float | None = None

    def progress(self, pictures: int, seconds: float) -> float:
        """How far the part is, from 0 to 1, by pictures or by time, whichever is further."""
        return max(pictures / self.pictures, seconds / 60 / self.minutes if self.minutes else 0.0)

    def rate(self, progress: float) -> float:
        """A short rise, then a straight line down."""
        return min(1.0, progress / 0.03 + 0.02) * (self.lr + (self.last_lr - self.lr) * progress)


def build_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The architecture with fresh weights: CLIP 5 × 128, Llama 6 × 192, three million parameters."""
    tokenizer = processor.tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (BOS, EOS, PAD, IMAGE_TOKEN)}
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=5, num_attention_heads=4,
        image_size=UNITS, patch_size=PATCH, projection_dim=128,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=384, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=ids[BOS], eos_token_id=ids[EOS], pad_token_id=ids[PAD],
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=ids[IMAGE_TOKEN], image_seq_length=PATCHES,
        vision_feature_layer=-2, vision_feature_select_strategy="default", tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(bos_token_id=ids[BOS], eos_token_id=ids[EOS], pad_token_id=ids[PAD], do_sample=False)
    return model


@dataclass(frozen=True)
class Settings:
    """What a training run was asked for."""

    out: Path
    checkpoints: Path
    seed: int
    batch: int
    parts: tuple[Part, ...]
    device: str
    producers: int


class Trainer:
    """One lane of a training run: its copy of the model on shared weights, its share of the optimizer."""

    def __init__(self, settings: Settings, lane: Lane):
        self.settings, self.lane = settings, lane
        self.processor = build_processor()
        self.model, self.reader = _fresh(self.processor, settings)
        self.prefix = torch.tensor(Encoder(self.processor.tokenizer).prefix, device=settings.device)
        self.params = lane.share([*self.model.parameters(), *self.reader.parameters()])
        self.state = self._restore()

    def train(self) -> None:
        """All parts that are not done yet, the last state's first."""
        for part in self.settings.parts:
            if part.name not in self.state["done"]:
                self._train_part(part)
                self.state["done"].append(part.name)
                self.lane.meet()

    def _train_part(self, part: Part) -> None:
        optimizers = Optimizers([self.model, self.reader], part.lr, self.lane.rank, self.lane.lanes.count)
        seen, spent = self.state["seen"].get(part.name, (0, 0.0))
        if self.state["optimizers"] and self.state["part"] == part.name:
            optimizers.load_state_dict(self.state["optimizers"])
        text = part.name != "look"
        first = FIRST_TRAINING_SEED + seen + (0 if text else _LOOK_SEEDS)
        source = BatchStream(self.processor.tokenizer, first, _MICRO, text, self.settings.producers)
        step = torch.compile(self._answer if text else self._look)
        micros = self.settings.batch // _MICRO
        report = Report()
        self.lane.start(part.progress(seen, spent))
        started = saved = logged = time.monotonic()
        while (progress := self.lane.progress) < 1:
            for index in self.lane.shares(micros):
                batch = {name: torch.from_numpy(x).to(self.settings.device) for name, x in source[index].items()}
                with torch.autocast(self.settings.device, torch.bfloat16):
                    loss, patches, predicted = step(batch)
                (loss / micros).backward()
                report.add(loss, patches, predicted, batch)
            self.lane.add_gradients(self.params)
            self.lane.meet()
            optimizers.step(part.rate(progress))
            now = time.monotonic()
            seen_now = seen + (self.lane.steps + 1) * self.settings.batch
            self.lane.finish_step(part.progress(seen_now, spent + now - started))
            self.state["seen"][part.name] = (seen_now, spent + now - started)
            if self.lane.rank == 0 and self.lane.steps % _LOG_EVERY == 0:
                speed = self.settings.batch * _LOG_EVERY / (now - logged)
                print(f"{part.name} {seen_now:7d} {progress:.3f} {speed:5.1f}/s {report}", flush=True)
                report, logged = Report(), now
            if now - saved > _SAVE_SECONDS:
                self._save(part.name, optimizers)
                saved = now
        source.close()
        self._save(part.name, optimizers, done=True)

    def _look(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, None]:
        features = visual_features(self.model, batch["pixels"])
        loss, right = self.reader(features, batch["patches"], batch["offsets"])
        return loss, right, None

    def _answer(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        features = visual_features(self.model, batch["pixels"])
        seen, right = self.reader(features, batch["patches"], batch["offsets"])
        logits = answer_logits(self.model, features, self.prefix, batch)[:, :-1]
        targets, weights = batch["tokens"][:, 1:], batch["weights"][:, 1:]
        each = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        loss = (each.view_as(weights) * weights).sum() / weights.sum()
        return loss + _PATCH_LOSS * seen, right, logits.argmax(-1)

    def _save(self, part: str, optimizers: Optimizers, done: bool = False) -> None:
        """Write this lane's optimizer state and, in the first lane, weights and progress; then publish."""
        folder = self.settings.checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        _write(optimizers.state_dict(), folder / f"optimizers-{self.lane.rank}-of-{self.lane.lanes.count}.pt")
        if self.lane.rank == 0:
            finished = [*self.state["done"], part] if done else self.state["done"]
            state = {"params": self.params, "part": part, "done": finished, "seen": self.state["seen"]}
            _write(state, folder / "state.pt")
            if part != "look":
                self._publish()

    def _publish(self) -> None:
        """Write weights (bf16) and processor where users load them, each file in one move."""
        staging = self.settings.checkpoints / "weights"
        copy = build_model(self.processor)
        copy.load_state_dict({name: value.cpu() for name, value in self.model.state_dict().items()})
        copy.bfloat16().save_pretrained(staging)
        self.processor.save_pretrained(staging)
        self.settings.out.mkdir(parents=True, exist_ok=True)
        for file in staging.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner's eyes only
            file.replace(self.settings.out / file.name)

    def _restore(self) -> dict:
        """The state to go on from; where there is one, the weights are set to it."""
        folder = self.settings.checkpoints
        fresh: dict = {"part": None, "done": [], "seen": {}, "optimizers": None}
        if not (folder / "state.pt").exists():
            return fresh
        state = torch.load(folder / "state.pt", weights_only=True, map_location=self.settings.device)
        if self.lane.rank == 0:
            with torch.no_grad():
                for param, value in zip(self.params, state.pop("params"), strict=True):
                    param.copy_(value)
        mine = folder / f"optimizers-{self.lane.rank}-of-{self.lane.lanes.count}.pt"
        optimizers = torch.load(mine, weights_only=True) if mine.exists() else None
        return fresh | {name: state[name] for name in ("part", "done", "seen")} | {"optimizers": optimizers}


def _facts(settings: Settings) -> Facts:
    seen = torch.load(settings.checkpoints / "state.pt", weights_only=True)["seen"]
    minutes = sum(seconds for _, seconds in seen.values()) / 60
    return Facts(seen["look"][0], seen["answer"][0], minutes, settings.seed, settings.device.upper())


def _write(state: object, file: Path) -> None:
    torch.save(state, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def _fresh(processor: LlavaProcessor, settings: Settings) -> tuple[LlavaForConditionalGeneration, PatchReader]:
    torch.manual_seed(settings.seed)
    model = build_model(processor).to(settings.device)  # type: ignore[arg-type]
    return model, PatchReader(model.config.vision_config.hidden_size).to(settings.device)


def _lane(settings: Settings, lane: Lane) -> None:
    Trainer(settings, lane).train()


def main() -> None:
    """Train, publish, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints/tiny"), help="folder for the state")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--look-pictures", type=int, default=32_000, help="pictures of the first part")
    parser.add_argument("--pictures", type=int, default=90_000, help="pictures of the second part")
    parser.add_argument("--look-minutes", type=float, help="end the first part after so long, whatever was seen")
    parser.add_argument("--minutes", type=float, help="end the second part after so long, whatever was seen")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    cores = os.cpu_count() or 2
    parts = (
        Part("look", options.look_pictures, options.lr, options.lr / 4, options.look_minutes),
        Part("answer", options.pictures, options.lr, options.lr / 50, options.minutes),
    )
    settings = Settings(
        options.out, options.checkpoints, options.seed, options.batch, parts, device,
        producers=max(1, cores - 1) if device == "cuda" else 0,
    )  # fmt: skip
    model, reader = _fresh(build_processor(), settings)
    lanes = Lanes(1 if device == "cuda" else min(cores, 4))
    run_lanes(_lane, settings, lanes, [*model.parameters(), *reader.parameters()])
    print(write_card(settings.out, _facts(settings)))


if __name__ == "__main__":
    main()
