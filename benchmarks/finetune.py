"""What fine-tuning costs and what it reaches: on the tiny model, on the CPU.

    python benchmarks/finetune.py step      # seconds of a step beside a bare Trainer loop over the same rows
    python benchmarks/finetune.py learn     # a new kind of question, from 2,000 scenes: minutes, and exact answers

Ratios within rounds that run both ways in turn; the median of the rounds is printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import llava_probe as lp
from llava_probe import tiny
from llava_probe.finetune.parts import adapter_config
from llava_probe.tiny.plan import GRID_PLACES

FIRST_SEED = 500_000_000  # no seed of any training, and none that is held out

PLACES = tuple(place for row in GRID_PLACES for place in row)


def what_is_at(scene: tiny.Scene, place: str) -> str:
    """The answer to a question that the tiny model was never asked."""
    for item in scene.objects:
        if item.place == place:
            return item.kind if item.text else f"{item.colour} {item.kind}"
    return "no"


def new_rows(seeds: range, places: int) -> list[dict[str, Any]]:
    """Rows that ask what is at some places of each scene: two of three places hold something."""
    rows = []
    for seed in seeds:
        scene = tiny.scene(seed)
        taken = [item.place for item in scene.objects]
        free = [place for place in PLACES if place not in taken]
        asked = [*taken[: places - 1], free[seed % len(free)]]
        rows += [
            {"image": scene.image, "question": f"What is at the {place}?", "answer": what_is_at(scene, place)}
            for place in asked
        ]
    return rows


class Timed(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Now."""
        self.ended.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Of each step but the first."""
        return [after - before for before, after in zip(self.ended, self.ended[1:], strict=False)]


def bare(rows: list[dict[str, Any]], size: int, steps: int) -> list[float]:
    """Seconds of each step of a Trainer loop as one would write it: its collator calls the processor."""
    from peft import get_peft_model

    vlm = lp.load()
    processor, tokenizer = vlm.processor, vlm.processor.tokenizer

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        prompts = [f"<s>USER: <image>\n{row['question']}\nASSISTANT:" for row in batch]
        texts = [f"{prompt} {row['answer']}</s>" for prompt, row in zip(prompts, batch, strict=True)]
        images = [[row["image"]] for row in batch]
        settings = {"padding": True, "padding_side": "right", "add_special_tokens": False, "return_tensors": "pt"}
        made = processor(text=texts, images=images, **settings)
        labels = made["input_ids"].clone()
        labels[made["attention_mask"] == 0] = -100
        for number, row in enumerate(batch):
            answer = len(tokenizer(f" {row['answer']}</s>", add_special_tokens=False).input_ids)
            labels[number, : int(made["attention_mask"][number].sum()) - answer] = -100
        return {**made, "labels": labels}

    timed = Timed()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=size, max_steps=steps, learning_rate=2e-4, use_cpu=True, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        model = get_peft_model(vlm.model, adapter_config(vlm.anatomy, ("language",), rank=16, alpha=32))
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate, callbacks=[timed])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return timed.seconds


def ours(rows: list[dict[str, Any]], size: int, steps: int) -> list[float]:
    """Seconds of each of our steps."""
    from llava_probe.finetune import training

    timed = Timed()
    made = training.Trainer.__init__

    def watched(self: Any, *given: Any, **settings: Any) -> None:
        made(self, *given, **settings)
        self.add_callback(timed)

    training.Trainer.__init__ = watched
    try:
        with tempfile.TemporaryDirectory() as folder:
            lp.finetune(rows, "tiny", Path(folder) / "out", steps=steps, batch_size=size, held_out=0.0)
    finally:
        training.Trainer.__init__ = made
    return timed.seconds


def step(options: argparse.Namespace) -> None:
    """Print the ratio of a step's seconds."""
    rows = new_rows(range(FIRST_SEED, FIRST_SEED + options.size * (options.steps + 1)), 1)
    ratios, theirs = [], []
    for number in range(options.rounds):
        ways = (bare, ours) if number % 2 else (ours, bare)
        found = {way: statistics.median(way(rows, options.size, options.steps)) for way in ways}
        ratios.append(found[ours] / found[bare])
        theirs.append(found[bare])
    print(f"a step of {options.size} rows, each with a picture of its own, tiny model, LoRA, float32, CPU")
    print(f"  bare Trainer {statistics.median(theirs):.3f} s; ours {statistics.median(ratios):.3f} of it")
    print(f"  ({', '.join(f'{ratio:.3f}' for ratio in ratios)} in {options.rounds} rounds)")


def learn(options: argparse.Namespace) -> None:
    """Train a new kind of question and print what was reached on held-out scenes."""
    rows = new_rows(range(FIRST_SEED, FIRST_SEED + options.scenes), 3)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        result = lp.finetune(
            rows, "tiny", out, epochs=options.epochs, batch_size=32, lr=options.lr, held_out=0.05, progress=True
        )
        minutes = (time.perf_counter() - began) / 60
        vlm = lp.load(adapter=out)
        asked = new_rows(range(1000, 1000 + options.held_out), 3)
        right = sum(
            vlm.generate(row["image"], row["question"], max_new_tokens=8).answer.strip() == row["answer"]
            for row in asked
        )
    print(result)
    print(f"{len(rows):,} rows about {options.scenes:,} scenes, {options.epochs} epochs: {minutes:.1f} min")
    print(f"exact on {len(asked):,} questions about {options.held_out} held-out scenes: {right / len(asked):.1%}")


def main() -> None:
    """Read the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("step")
    one.add_argument("--size", type=int, default=16)
    one.add_argument("--steps", type=int, default=24)
    one.add_argument("--rounds", type=int, default=5)
    one.set_defaults(run=step)
    two = verbs.add_parser("learn")
    two.add_argument("--scenes", type=int, default=2000)
    two.add_argument("--epochs", type=int, default=4)
    two.add_argument("--lr", type=float, default=2e-3)
    two.add_argument("--held-out", type=int, default=200)
    two.set_defaults(run=learn)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
