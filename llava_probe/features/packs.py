"""From samples to model inputs: the questions about one picture behind one prefix, several pictures a batch.

    prefix  = system text and visual tokens, the same for every question about the picture
    pack    = [prefix | question 1, answer 1 | question 2, answer 2 | ...]

The picture goes through the processor once for each pack. Sequences are padded on the right: every token stands where
it would stand alone, so no position has to be mended. ``packing.py`` keeps the branches of a pack apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava_probe.asking.answers import answer_ids, check_answer
from llava_probe.asking.generation import lengthened
from llava_probe.asking.lengths import check_length
from llava_probe.asking.prompts import PosedQuestion, pose
from llava_probe.errors import BadImage, BadInput
from llava_probe.features.samples import Sample
from llava_probe.inside.passes import Prompt
from llava_probe.layout import PromptLayouts
from llava_probe.model import VLM


@dataclass(frozen=True)
class AskingSettings:
    """How every sample is asked, besides its own words.

    Attributes:
        system: a system prompt for the model's template; a sample's own goes before.
        template_kwargs: further arguments of the template.
        processor_kwargs: settings of the processor.
    """

    system: str | None = None
    template_kwargs: Mapping[str, Any] | None = None
    processor_kwargs: Mapping[str, Any] | None = None

    @property
    def of_template(self) -> dict[str, Any]:
        """Those that make the prompt, as ``pose`` takes them."""
        given = {"system": self.system, "template_kwargs": self.template_kwargs}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Branch:
    """One sample's own tokens in a pack.

    Attributes:
        sample: whose.
        prompt: ids of its whole prompt, the prefix included.
        answer: ids of its answer; the last one is not fed to the model.
        prefix: how many tokens it shares.
        start: where its own tokens begin in the packed sequence.
    """

    sample: Sample
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    prefix: int
    start: int

    @property
    def own(self) -> tuple[int, ...]:
        """The ids that the model reads behind the prefix."""
        return (*self.prompt, *self.answer[:-1])[self.prefix :]

    @property
    def stop(self) -> int:
        """Behind its last token."""
        return self.start + len(self.own)

    def place(self, position: int) -> int:
        """Where a token of the sample's own sequence stands in the packed one."""
        return position if position < self.prefix else self.start + position - self.prefix


@dataclass(frozen=True)
class Pack:
    """The questions about one picture (or a single question) in one sequence.

    Attributes:
        prefix: how many tokens the branches share.
        branches: one for each sample.
        visual: positions of the visual tokens, all in the prefix where there are several branches.
        places: where these lie on the pictures; empty where nobody asked, or where it is not known.
        lay_out: works that out, for what visits its pass.
    """

    prefix: int
    branches: tuple[Branch, ...]
    visual: tuple[int, ...]
    places: PromptLayouts
    lay_out: Callable[[], PromptLayouts] | None = None

    @property
    def ids(self) -> list[int]:
        """The packed sequence."""
        return [*self.branches[0].prompt[: self.prefix], *(token for branch in self.branches for token in branch.own)]


@dataclass(frozen=True)
class Batch:
    """Packs that go through the model in one pass, and its inputs on the model's device."""

    packs: tuple[Pack, ...]
    inputs: Mapping[str, Any]

    @property
    def samples(self) -> list[Sample]:
        """All of them, pack by pack."""
        return [branch.sample for pack in self.packs for branch in pack.branches]

    @property
    def prompts(self) -> list[Prompt]:
        """What each row holds, for what visits its pass: one sample's prompt and answer, or a pack's prefix."""
        return [
            Prompt(
                len(pack.branches[0].prompt) if len(pack.branches) == 1 else pack.prefix,
                0,
                pack.visual,
                tuple(pack.ids),
                pack.branches[0].sample.question if len(pack.branches) == 1 else None,
                lay_out=pack.lay_out,
            )
            for pack in self.packs
        ]

    @property
    def packed(self) -> bool:
        """Whether several questions share a prefix."""
        return any(len(pack.branches) > 1 for pack in self.packs)


def batch_of(
    vlm: VLM,
    groups: Sequence[Sequence[Sample]],
    answers: Mapping[int, Sequence[int]] | None = None,
    *,
    places: bool = False,
    asking: AskingSettings | None = None,
) -> Batch:
    """Make the model inputs of some groups, each of samples about the same picture.

    Args:
        vlm: whose processor reads them.
        groups: a pack is made of each.
        answers: ids of generated answers by the samples' rows; a sample's own answer goes before.
        places: whether layouts are needed.
        asking: what is the same for all of them.

    Raises:
        BadInput, BadImage: a sample that cannot be asked.
        Unshared: a group's prompts have no common beginning with the picture in it.
    """
    asking = asking or AskingSettings()
    settings = asking.processor_kwargs or {}
    asked = [_posed(vlm, group, asking) for group in groups]
    firsts = [questions[0] for questions in asked]
    tensors, prompts = vlm.prepare(firsts, settings)
    packs, rows = [], []
    for number, (group, questions, prompt) in enumerate(zip(groups, asked, prompts, strict=True)):
        ids = tensors["input_ids"][number, prompt.padding :].tolist()
        prefix, tails = (len(ids), [[]]) if len(group) == 1 else _shared(vlm.processor, questions, ids)
        if len(group) > 1 and prompt.image_positions and prompt.image_positions[-1] >= prefix:
            raise Unshared(f"the picture stands behind words in which the questions of {group[0].picture} differ")
        branches: list[Branch] = []
        for sample, question, tail in zip(group, questions, tails, strict=True):
            whole = (*ids[:prefix], *tail)
            answer = _answer(vlm, sample, question, whole, answers or {})
            check_length(vlm.anatomy, len(whole), len(answer))
            start = branches[-1].stop if branches else prefix
            branches.append(Branch(sample, whole, answer, prefix, start))
        found = vlm.layouts_of(firsts, number, prompt, tensors, settings) if places else PromptLayouts()
        packs.append(Pack(prefix, tuple(branches), prompt.image_positions, found, prompt.lay_out))
        rows.append(prompt.padding)
    return Batch(tuple(packs), _inputs(vlm, tensors, packs, rows))


class Unshared(BadInput):
    """Prompts about one picture that cannot be packed behind one prefix."""


def posed(vlm: VLM, sample: Sample, asking: AskingSettings | None = None) -> PosedQuestion:
    """A sample as a question, its picture opened.

    Raises:
        BadInput, BadImage: it cannot be asked.
    """
    return _posed(vlm, [sample], asking or AskingSettings())[0]


def _posed(vlm: VLM, group: Sequence[Sample], asking: AskingSettings) -> list[PosedQuestion]:
    """The questions of a group; its picture is opened once, unless it lies inside the chats."""
    first, *others = group
    question = _pose(vlm, first, [_source(image) for image in first.images], asking)
    if not first.images:
        return [question, *(_pose(vlm, other, [], asking) for other in others)]
    stand_ins = [Image.new("RGB", (1, 1)) for _ in question.images]  # a prompt's text depends on their number alone
    return [
        question,
        *(replace(_pose(vlm, other, stand_ins, asking), images=question.images) for other in others),
    ]


def _pose(vlm: VLM, sample: Sample, images: Sequence[Any], asking: AskingSettings) -> PosedQuestion:
    ways: dict[str, Any] = {"prompt": sample.prompt, "messages": sample.messages, **asking.of_template}
    if sample.system is not None:
        ways["system"] = sample.system
    try:
        return pose(vlm.processor, list(images) or None, sample.question, **ways)
    except BadImage:
        raise
    except BadInput as error:
        if sample.prompt is None:
            raise
        instead = "a prompt is the whole text, as it is; for words of a question say columns={'question': 'prompt'}"
        raise BadInput(f"{error}; {instead}") from None


def _source(image: Any) -> Any:
    """A picture as Hugging Face data sets give it undecoded is a dict of bytes and a path."""
    if isinstance(image, Mapping):
        return image["bytes"] if image.get("bytes") is not None else image.get("path")
    return image


def _answer(
    vlm: VLM, sample: Sample, question: PosedQuestion, prompt: Sequence[int], generated: Mapping[int, Sequence[int]]
) -> tuple[int, ...]:
    """Ids of its own answer, or of the generated one.

    Raises:
        BadInput: it cannot be read in one pass.
    """
    given = sample.answer
    if given is None:
        ids = tuple(generated.get(sample.row, ()))
    else:
        ids = answer_ids(vlm.processor, question, prompt, given, vlm.answer_ends)
    check_answer(ids, vlm.anatomy.vocabulary, vlm.visual_ids)
    return ids


def _shared(processor: Any, questions: Sequence[PosedQuestion], first: Sequence[int]) -> tuple[int, list[list[int]]]:
    """Split prompts behind their common beginning, without the picture going through the processor again.

    Args:
        processor: its tokenizer reads the texts, pictures still one mark each.
        questions: about one picture.
        first: ids of the first one's prompt as the processor made them, visual tokens included.

    Returns:
        The prefix's length in ``first``, and the ids of each prompt behind it.
    """
    tokens = text_ids(processor.tokenizer, [question.prompt or "" for question in questions])
    alike = 0
    while all(len(one) > alike + 1 and one[alike] == tokens[0][alike] for one in tokens):
        alike += 1
    tails = [one[alike:] for one in tokens]
    if list(first[-len(tails[0]) :]) != tails[0]:
        raise Unshared(f"{type(processor).__name__} writes more into a prompt than its visual tokens")
    return len(first) - len(tails[0]), tails


def text_ids(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Ids of prompts as a processor's tokenizer makes them, pictures still one mark each."""
    whole = bool(tokenizer.bos_token) and all(prompt.startswith(tokenizer.bos_token) for prompt in prompts)
    return [tokenizer(prompt, add_special_tokens=not whole).input_ids for prompt in prompts]


def _inputs(vlm: VLM, tensors: Mapping[str, Any], packs: Sequence[Pack], padding: Sequence[int]) -> dict[str, Any]:
    """The processor's tensors with packed, right-padded sequences where they had prompts."""
    ids = tensors["input_ids"]
    device, width = ids.device, max(len(pack.ids) for pack in packs)
    after = lengthened(vlm.anatomy.model, tensors, 1)
    inputs: dict[str, Any] = {}
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or value.shape[:2] != ids.shape:
            inputs[name] = value
            continue
        rows = []
        for number, pack in enumerate(packs):
            own, next_one = value[number, padding[number] :], after[name][number, -1:] if name in after else None
            parts = [own[: pack.prefix]]
            for branch in pack.branches:
                asked = len(branch.prompt) - pack.prefix
                parts.append(own[-1:].expand(asked, *own.shape[1:]))
                told = own[-1:] if next_one is None else next_one
                parts.append(told.expand(len(branch.own) - asked, *own.shape[1:]))
            row = torch.cat(parts)
            rows.append(torch.cat([row, row.new_zeros(width - len(row), *row.shape[1:])]))
        inputs[name] = torch.stack(rows)
    filler = vlm.processor.tokenizer.pad_token_id or 0
    padded = [pack.ids + [filler] * (width - len(pack.ids)) for pack in packs]
    inputs["input_ids"] = torch.tensor(padded, dtype=ids.dtype, device=device)
    lengths = torch.tensor([len(pack.ids) for pack in packs], device=device)
    there = torch.arange(width, device=device) < lengths.unsqueeze(1)
    inputs["attention_mask"] = there.to(tensors.get("attention_mask", ids).dtype)
    return inputs
