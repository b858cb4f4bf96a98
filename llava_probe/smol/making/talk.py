"""What the language model says without a picture, to be trained beside the scenes so that it still says it afterwards.

    python -m llava_probe.smol.making.talk --out build/smol

LLaVA's own training data hold text-only conversations for the same reason. Here the answers are the untrained model's,
greedy, up to the last sentence that it finished; none of the questions is one that the card asks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_probe.smol.built import base
from llava_probe.stored import whole

_LONGEST, _TOGETHER = 72, 48

_ABOUT = (
    "Write one sentence about {}.", "What is {}?", "Tell me something about {}.", "Why do people like {}?",
    "Give me a title for a story about {}.", "Describe {} in a few words.", "Name three things that go with {}.",
    "Write a question about {}.",
)  # fmt: skip
_TOPICS = (
    "winter", "bread", "the moon", "music", "a train", "rain", "a garden", "friendship", "a library", "coffee",
    "the desert", "a bridge", "chess", "a river", "sleep", "history", "a bicycle", "clouds", "a letter", "honey",
    "mathematics", "a mountain", "dancing", "a kitchen", "the wind", "a lighthouse", "painting", "an island", "time",
    "a market", "a dog", "fire", "a school", "the stars", "a forest", "silence", "a clock", "snow", "a boat", "a dream",
)  # fmt: skip
_PLACES = (
    "Italy", "Japan", "Egypt", "Brazil", "Canada", "India", "Norway", "Greece", "Kenya", "Mexico", "Spain", "China",
    "Peru", "Turkey", "Poland", "Chile", "Iceland", "Morocco", "Vietnam", "Austria",
)  # fmt: skip
_OF_PLACES = ("What is the capital of {}?", "On which continent is {}?", "Which language is spoken in {}?")
_WORDS = ("hot", "early", "strong", "happy", "full", "near", "old", "quiet", "easy", "light", "open", "soft")
_SUMS = tuple((first, second) for first in range(2, 12) for second in (3, 4, 6, 8))


def questions() -> Iterator[str]:
    """What is asked, in order."""
    yield from (ask.format(topic) for topic in _TOPICS for ask in _ABOUT)
    yield from (ask.format(place) for place in _PLACES for ask in _OF_PLACES)
    yield from (f"What is the opposite of {word}?" for word in _WORDS)
    yield from (f"What is {first} plus {second}?" for first, second in _SUMS)


def write_talk(out: Path) -> Path:
    """Ask all of it and write the rows to ``out/talk.jsonl``; the path."""
    processor: Any = AutoProcessor.from_pretrained(base())
    model: Any = AutoModelForImageTextToText.from_pretrained(base(), dtype=torch.bfloat16).eval()
    asked = list(questions())
    out.mkdir(parents=True, exist_ok=True)
    with whole("data set", out / "talk.jsonl") as part, part.open("w") as file:
        for start in range(0, len(asked), _TOGETHER):
            some = asked[start : start + _TOGETHER]
            for question, answer in zip(some, _answers(model, processor, some), strict=True):
                if answer:
                    file.write(json.dumps({"question": question, "answer": answer}) + "\n")
    return out / "talk.jsonl"


def _answers(model: Any, processor: Any, asked: list[str]) -> Iterator[str]:
    """What it answers, each up to the end of a sentence; empty where it finished none."""
    chats = [[{"role": "user", "content": [{"type": "text", "text": question}]}] for question in asked]
    prompts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    inputs = processor.tokenizer(
        prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    )
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=_LONGEST, do_sample=False)
    new = ids[:, inputs["input_ids"].shape[1] :]
    for row, text in zip(new, processor.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
        ended = processor.tokenizer.eos_token_id in row.tolist()
        stop = max(text.rfind(mark) for mark in ".!?") + 1
        yield text.strip() if ended else text[:stop].strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder")
    print(write_talk(parser.parse_args().out))
