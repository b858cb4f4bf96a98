"""How good the weights are, and the card that says so.

Measured as a user would use them: the 336-pixel picture through the processor, plain ``generate``, and the whole answer
must be right to the letter. A blank picture and another scene's picture show how far guessing gets, which is what makes
the first number mean that the model looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from llava_probe.tiny.questions import KINDS
from llava_probe.tiny.scenes import Scene, scene

CARD_PROMPT = "USER: <image>\n{question}\nASSISTANT:"
_LONGEST = {"describe": 64}  # tokens; four objects take 46
_SHORT = 8
_GREY = (128, 128, 128)
_SCENES, _GUESSING_SCENES = 1_000, 300


@dataclass(frozen=True)
class Tally:
    """How many answers of one kind were right."""

    right: int
    asked: int

    def __str__(self) -> str:
        return f"{100 * self.right / self.asked:.1f}" if self.asked else "–"


@dataclass(frozen=True)
class Facts:
    """What the training run knows about itself."""

    looked_at: int
    answered_about: int
    minutes: float
    seed: int
    device: str


def answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    asked: Sequence[tuple[Image.Image, str]],
    max_new_tokens: int = 64,
    prompt: str = CARD_PROMPT,
) -> list[str]:
    """What the model answers to each (picture, question), generated as one batch."""
    inputs = processor(
        text=[prompt.format(question=question) for _, question in asked],
        images=[picture for picture, _ in asked],
        padding=True,
        return_tensors="pt",
    ).to(model.device, model.dtype)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)  # type: ignore[misc]
    new = ids[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def exact_answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    seeds: Iterable[int],
    picture: str = "right",
    batch: int = 64,
) -> dict[str, Tally]:
    """Exact answers by kind of question.

    Args:
        model, processor: what is measured.
        seeds: of the scenes to ask about.
        picture: ``"right"``, ``"blank"`` (plain grey) or ``"other"`` (the next scene's).
        batch: questions at a time.
    """
    scenes = [scene(seed) for seed in seeds]
    right, total = Counter[str](), Counter[str]()
    for kind in KINDS:
        asked = [
            (_shown(scenes, i, picture), question)
            for i, one in enumerate(scenes)
            for question in one.questions
            if question.kind == kind
        ]
        for start in range(0, len(asked), batch):
            part = asked[start : start + batch]
            said = answers(model, processor, [(image, q.question) for image, q in part], _LONGEST.get(kind, _SHORT))
            right[kind] += sum(answer == q.answer for answer, (_, q) in zip(said, part, strict=True))
            total[kind] += len(part)
    return {kind: Tally(right[kind], total[kind]) for kind in KINDS}


def write_card(folder: Path, facts: Facts) -> str:
    """Measure the weights in a folder on held-out scenes, write its README.md, and return the table."""
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    if torch.cuda.is_available():
        torch.nn.Module.to(model, "cuda")
    table = _table(
        exact_answers(model, processor, range(_SCENES)),
        exact_answers(model, processor, range(_GUESSING_SCENES), "blank"),
        exact_answers(model, processor, range(_GUESSING_SCENES), "other"),
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = sum(file.stat().st_size for file in folder.iterdir() if file.name != "README.md") / 1e6
    text = _CARD.format(
        table=table, parameters=parameters, size=size, scenes=_SCENES, guessing=_GUESSING_SCENES, **vars(facts)
    )
    (folder / "README.md").write_text(text)
    return table


def _shown(scenes: list[Scene], i: int, picture: str) -> Image.Image:
    if picture == "blank":
        return Image.new("RGB", scenes[i].image.size, _GREY)
    return scenes[(i + 1) % len(scenes)].image if picture == "other" else scenes[i].image


def _table(right: dict[str, Tally], blank: dict[str, Tally], other: dict[str, Tally]) -> str:
    rows = ["| kind of question | asked | right picture | blank picture | another picture |", "|---|---|---|---|---|"]
    rows += [f"| {kind} | {right[kind].asked} | {right[kind]} | {blank[kind]} | {other[kind]} |" for kind in KINDS]
    return "\n".join(rows)


_CARD = """\
---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---

# The tiny LLaVA

A real `LlavaForConditionalGeneration`, small enough to ship inside a package: {parameters:,} parameters,
{size:.1f} MB in bf16. It was trained from nothing on drawn scenes, and answers questions about such scenes, so that
methods which claim to explain a vision-language model can be tried where the right explanation is known.

```python
from transformers import AutoProcessor, LlavaForConditionalGeneration
from llava_probe import tiny

processor = AutoProcessor.from_pretrained(tiny.path())
model = LlavaForConditionalGeneration.from_pretrained(tiny.path())
prompt = "USER: <image>\\nWhat is the text on the stop sign?\\nASSISTANT:"
inputs = processor(text=prompt, images=tiny.scene(4).image, return_tensors="pt")
print(processor.decode(model.generate(**inputs, max_new_tokens=50)[0], skip_special_tokens=True))
```

## What it is

| part | shape |
|---|---|
| picture | shortest edge to 112, centre crop, mean and standard deviation 0.5 |
| vision tower | CLIP: 5 layers, width 128, 4 heads, patches of 8 pixels: 14 × 14 = 196 visual tokens |
| features | layer −2, CLS dropped, as in LLaVA-1.5; the fifth layer and the pooled output are therefore untrained |
| projector | two linear layers with GELU, 128 to 192 |
| language model | Llama: 6 layers, width 192, 4 heads of 32, MLP 384, tied embeddings |
| tokenizer | byte-level BPE; the words of the questions are one token each, words on signs are spelled in letters |
| prompt | `USER: <image>\\n{{question}}\\nASSISTANT:`; ` ASSISTANT:` on the same line works too |

## What it was trained on

Scenes of one to four objects (six shapes in eight colours, and red stop signs with one of sixteen words) on noisy
gradients, and questions about them, drawn by `llava_probe.tiny`: {looked_at:,} pictures for the vision tower alone,
with what each patch shows as the target, then {answered_about:,} for the whole model, about twelve questions each.
{minutes:.0f} minutes on the {device}, seed {seed}; `python -m llava_probe.tiny.making.train` does it again. Scenes with
a seed below 1,000,000 were never drawn in training.

## How good it is

Exact answers in percent on the held-out scenes 0 to {scenes} (exclusive), from the 336-pixel picture through the
processor and greedy `generate`. What guessing earns: the same with a plain grey picture, and with the next scene's
picture, on the first {guessing}.

{table}

## Limits

It knows its own kind of picture and question, nothing else: on photographs and in other words its answers mean
nothing. Asked about something that is not there ("What colour is the star?" without a star) it still answers. It was
never taught system prompts; the chat template takes them. Conversations of up to three turns were part of the training.
"""
