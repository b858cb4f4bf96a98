"""A vision-language model and its processor, ready to be asked and looked into.

    vlm = lp.load()                                        # the tiny model that ships inside
    vlm = lp.load("llava-hf/llava-1.5-7b-hf", dtype="bfloat16", device_map="auto")
    vlm = lp.VLM(model, processor)                         # whatever you already hold
    trace = vlm.generate("street.jpg", "What is the text on the stop sign?")

The model runs unmodified and is given back as it was found; each run leaves a ``Trace``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

from torch import Tensor

from llava_probe.asking.announce import announce
from llava_probe.asking.answers import answer_ends, answer_ids, check_answer
from llava_probe.asking.decoding import check_decoding, with_a_length
from llava_probe.asking.generation import PromptedSample, Vocabulary, run_generate, run_score, scored_trace, traces_of
from llava_probe.asking.identity import decoding_of, differences
from llava_probe.asking.lengths import check_length
from llava_probe.asking.older import completed
from llava_probe.asking.options import Asked
from llava_probe.asking.preparation import Preparation
from llava_probe.asking.prompts import PosedQuestion, asked_again, pose, pose_each, token_id
from llava_probe.asking.provenance import provenance_of, sizes_of
from llava_probe.asking.templates import source_of
from llava_probe.border import Count, Seed, checked
from llava_probe.errors import BadInput, BadModel
from llava_probe.inside.anatomy import anatomy
from llava_probe.inside.passes import Prompt, alone_with, in_force
from llava_probe.layout import ImageLayout, Layouts, PromptLayouts
from llava_probe.trace.capture import Capture, Plan, resolve
from llava_probe.trace.request import Request, unsaved
from llava_probe.trace.spellings import ends_of, stops_at
from llava_probe.trace.trace import Trace

_NO_SETTINGS = ("streamer", "tokenizer")  # what they were changes nothing of the answer


@checked
class VLM:
    """A model and its processor.

    Attributes:
        model: any decoder-only image-text model of transformers, or a PEFT wrapper around one.
        processor: the processor it was trained with.
        anatomy: its blocks and towers, as found by type.
        layouts: works out where its visual tokens lie.
        checks: what ``lp.check`` found, kept in the provenance of later traces.

    Args:
        layout: where the places of visual tokens come from: ``"auto"`` (the family's written way of tiling, else
            measured once for each picture size), ``"measured"``, or ``"none"``.
    """

    def __init__(self, model: Any, processor: Any, *, layout: str = "auto") -> None:
        if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
            raise BadModel(
                f"expected a processor with a tokenizer and an image processor, got {type(processor).__name__}; "
                "load it with AutoProcessor.from_pretrained"
            )
        self.model = model
        self.processor = processor
        self.checks: dict[str, Any] = {}
        self._ends: tuple[Any, tuple[int, ...]] | None = None
        self.anatomy = anatomy(model)
        if model.training:
            warnings.warn("the model is in training mode, its dropout is on; call model.eval() first", stacklevel=2)
        self.processor = processor = completed(processor, self.anatomy)
        image, video = (token_id(self.anatomy.model, processor, kind) for kind in ("image", "video"))
        self._vocabulary = Vocabulary(processor.tokenizer, image, video)
        self.layouts = Layouts(self.anatomy, processor, layout)
        self._preparation = Preparation(self.anatomy, processor, self._vocabulary.visual, self.layouts)

    def __repr__(self) -> str:
        inside = self.anatomy
        return f"VLM({type(inside.model).__name__}, {inside}, {self.model.dtype})"

    def generate(
        self,
        image: Any = None,
        question: str | None = None,
        *,
        video: Any = None,
        prompt: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        inputs: Mapping[str, Tensor] | None = None,
        system: str | None = None,
        max_new_tokens: Count | None = None,
        capture: Capture | None = None,
        seed: Seed | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        **generate_kwargs: Any,
    ) -> Trace:
        """Ask about a picture and keep what ``capture`` says.

        Args:
            image: path, URL, bytes, PIL image or array, or a list of them for several pictures.
            question: plain words; the model's chat template is applied.
            video: frames: a list of pictures, an array [F, H, W, 3] or an animated GIF; a list of these for several
                videos. The frames given are the frames that the model sees, unless ``processor_kwargs`` says
                ``do_sample_frames``; in the trace they follow the pictures, one layout each.
            prompt: or the whole text as it is, image places included.
            messages: or a whole chat, pictures and videos inside or in ``image`` and ``video``.
            inputs: or ready-made model inputs of one sample, its pictures in ``image``, its frames in ``video``; the
                settings that made them, where they are not the processor's own, in ``processor_kwargs``.
            system: a system message in plain words, put before the question or the chat.
            max_new_tokens: at least 1; 64 unless ``max_length``, a ``generation_config`` or the model's own says.
            capture: what to keep; ``lp.Capture()`` when None.
            seed: ``torch.manual_seed`` just before the run.
            processor_kwargs: passed to the processor.
            template_kwargs: arguments of the chat template: ``enable_thinking``, ``tools`` ...
            **generate_kwargs: passed to ``model.generate``: ``do_sample``, ``temperature``, ``num_beams`` ...

        Raises:
            BadInput: something that cannot be asked; the sentence says what to type instead.
            NotANumber: the model's logits became NaN.
        """
        ways: dict[str, Any] = {"video": video, "prompt": prompt, "messages": messages, "inputs": inputs}
        asked = pose(self.processor, image, question, **ways, system=system, template_kwargs=template_kwargs)
        arguments = with_a_length(self.anatomy.generator, max_new_tokens, generate_kwargs)
        return self._generate([asked], arguments, capture, seed, processor_kwargs)[0]

    def generate_batch(
        self,
        samples: Sequence[Sequence[Any] | Mapping[str, Any]],
        *,
        max_new_tokens: Count | None = None,
        capture: Capture | None = None,
        seed: Seed | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **generate_kwargs: Any,
    ) -> list[Trace]:
        """Ask several questions in one run (left padding); each gets the same trace as alone.

        Args:
            samples: (image, question) pairs, or dicts of ``generate``'s first arguments.
            max_new_tokens, capture, seed, processor_kwargs, **generate_kwargs: as for ``generate``.
        """
        if not len(samples):  # an array has no truth
            return []
        questions = pose_each(self.processor, samples)
        arguments = with_a_length(self.anatomy.generator, max_new_tokens, generate_kwargs)
        return self._generate(questions, arguments, capture, seed, processor_kwargs)

    def score(
        self,
        image: Any = None,
        question: str | None = None,
        answer: str | Sequence[int] | Tensor = "",
        *,
        video: Any = None,
        prompt: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        inputs: Mapping[str, Tensor] | None = None,
        system: str | None = None,
        capture: Capture | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Trace:
        """The same record for a given answer, in one teacher-forced forward pass.

        Args:
            image, question, video, prompt, messages, inputs, system, capture, processor_kwargs, template_kwargs: as for
                ``generate``.
            answer: the whole answer as text (its end is added), or its token ids, taken as they are.
        """
        ways: dict[str, Any] = {"video": video, "prompt": prompt, "messages": messages, "inputs": inputs}
        asked = pose(self.processor, image, question, **ways, system=system, template_kwargs=template_kwargs)
        return self._score(asked, answer, capture, processor_kwargs)

    def _score(
        self,
        asked: PosedQuestion,
        answer: str | Sequence[int] | Tensor,
        capture: Capture | None,
        processor_kwargs: Mapping[str, Any] | None,
    ) -> Trace:
        capture = capture or Capture()
        tensors, prompts = self.prepare([asked], processor_kwargs or {})
        plan = self._plan(capture)
        prompt_ids = tensors["input_ids"][0, prompts[0].padding :].tolist()
        ids = answer_ids(self.processor, asked, prompt_ids, answer, self.answer_ends)
        check_answer(ids, self.anatomy.vocabulary, self.visual_ids)
        check_length(self.anatomy, len(prompt_ids), len(ids) - 1)
        request = asked.request(answer=ids, processor=dict(processor_kwargs or {}), capture=capture)
        sample = self._sample([asked], 0, request, prompts[0], tensors, self.anatomy.generator.generation_config)
        announce(plan, self.anatomy, prompts, tensors, new_tokens=len(ids), sequences=1)
        recorder, logits = run_score(self.model, self.anatomy, tensors, plan, prompts, ids)
        return scored_trace(recorder, logits, prompt_ids, self._vocabulary, sample)

    def rerun(
        self, trace: Trace, *, answer: str | Sequence[int] | Tensor | None = None, capture: Capture | None = None
    ) -> Trace:
        """The same inputs and settings again, under an intervention say.

        Args:
            trace: of this model.
            answer: another answer, scored in place of the one that was given or generated.
            capture: what to keep; as before when None.

        Raises:
            BadInput: one of its settings could not be saved with it, or it was drawn beside others of a batch.
        """
        request = trace.request if capture is None else replace(trace.request, capture=capture)
        if answer is not None:
            request = replace(request, answer=(), generate={})
        settings = [*request.generate.items(), *request.processor.items(), *request.template.items()]
        lost = [name for name, value in settings if unsaved(value)]
        if lost:
            raise BadInput(f"{', '.join(lost)} could not be saved with the trace; ask again with generate(...)")
        asked = asked_again(trace.images, request)
        if request.answer is not None:
            return self._score(asked, request.answer if answer is None else answer, request.capture, request.processor)
        if request.batch > 1 and check_decoding(self.anatomy.generator, request.generate).do_sample:
            raise BadInput(
                "this answer was drawn beside the others of its batch, so it cannot be drawn again alone; "
                "call generate_batch with the same samples and seed"
            )
        was, now = trace.provenance.get("decoding"), decoding_of(self.anatomy.generator)
        if was is not None and (others := differences(was, now)):
            told = "the model's generation_config is another one than when the trace was made"
            warnings.warn(f"{told} ({'; '.join(others)}): where the request says nothing it decides", stacklevel=2)
        again = self._generate([asked], request.generate, request.capture, request.seed, request.processor)[0]
        return (again, *again.alternatives)[request.sequence]

    def model_inputs(
        self, image: Any = None, question: str | None = None, **asking: Unpack[Asked]
    ) -> tuple[dict[str, Tensor], PosedQuestion]:
        """What ``generate`` would feed the model for this question, for calls of your own.

        Args:
            image, question: as for ``generate``.
            **asking: ``video``; ``prompt``, ``messages`` or ``inputs`` instead of a question; ``system``,
                ``processor_kwargs`` and ``template_kwargs``.

        Returns:
            Tensors on the model's device, and the settled question (pictures and prompt text).
        """
        given: dict[str, Any] = {**asking}
        processor_kwargs = given.pop("processor_kwargs", None) or {}
        asked = pose(self.processor, image, question, **given)
        return self.prepare([asked], processor_kwargs)[0], asked

    def lay_out(
        self, image: Any = None, question: str | None = "?", **asking: Unpack[Asked]
    ) -> tuple[ImageLayout, ...]:
        """Where the visual tokens of these pictures would lie in the prompt, without asking the model.

        Args:
            image, question, **asking: as for ``model_inputs``.

        Returns:
            One layout a picture or frame; empty where the model's visual tokens have no place.

        Raises:
            BadInput: it is not known: ``inputs`` show the pictures in a way that ``processor_kwargs`` do not, say.
        """
        given: dict[str, Any] = {**asking}
        processor_kwargs = given.pop("processor_kwargs", None) or {}
        question = None if {"prompt", "messages", "inputs"} & set(given) else question
        asked = pose(self.processor, image, question, **given)
        tensors, prompts = self.prepare([asked], processor_kwargs)
        places = self.layouts_of([asked], 0, prompts[0], tensors, processor_kwargs)
        if places.unknown:
            raise BadInput(f"where the visual tokens lie is not known: {places.unknown}")
        return places.layouts

    @property
    def answer_ends(self) -> tuple[int, ...]:
        """The ids that end an answer, that with which the model ends its own first; empty where none does."""
        stops = stops_at(self.anatomy.generator.generation_config)
        key = (stops, self.processor.tokenizer.eos_token_id, source_of(self.processor))
        if self._ends is None or self._ends[0] != key:  # a template takes some milliseconds to run
            self._ends = key, answer_ends(self.processor, stops)
        return self._ends[1]

    @property
    def visual_ids(self) -> tuple[int, int]:
        """The ids of a picture's and of a video's visual tokens; -1 where the model has none."""
        return self._vocabulary.visual

    def prepare(
        self, questions: Sequence[PosedQuestion], processor_kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], list[Prompt]]:
        """Model inputs on the model's device, and where each sample's prompt lies in them."""
        return self._preparation.inputs(questions, processor_kwargs)

    def layouts_of(
        self,
        questions: Sequence[PosedQuestion],
        number: int,
        prompt: Prompt,
        tensors: Mapping[str, Tensor],
        processor_kwargs: Mapping[str, Any],
    ) -> PromptLayouts:
        """Where the visual tokens of one sample lie; measuring it is a run of the model like any other."""
        return self._preparation.layouts_of(questions, number, prompt, tensors, processor_kwargs)

    # --- details ---

    def _generate(
        self,
        questions: Sequence[PosedQuestion],
        arguments: Mapping[str, Any],
        capture: Capture | None,
        seed: int | None,
        processor_kwargs: Mapping[str, Any] | None,
    ) -> list[Trace]:
        capture = capture or Capture()
        config = check_decoding(self.anatomy.generator, arguments)
        tensors, prompts = self.prepare(questions, processor_kwargs or {})
        plan = self._plan(capture)
        samples = [
            self._sample(
                questions,
                number,
                question.request(
                    generate={name: value for name, value in arguments.items() if name not in _NO_SETTINGS},
                    processor=dict(processor_kwargs or {}),
                    seed=seed,
                    batch=len(questions),
                    capture=capture,
                ),
                prompt,
                tensors,
                config,
            )
            for number, (question, prompt) in enumerate(zip(questions, prompts, strict=True))
        ]
        announce(
            plan,
            self.anatomy,
            prompts,
            tensors,
            new_tokens=config.max_new_tokens or max(1, (config.max_length or 20) - prompts[0].length),
            sequences=max(config.num_beams or 1, config.num_return_sequences or 1),
        )
        recorder, out, ended = run_generate(
            self.model,
            self.anatomy,
            self.processor.tokenizer,
            tensors,
            plan,
            prompts,
            arguments=arguments,
            config=config,
            seed=seed,
        )
        return traces_of(recorder, out, config, ended, self._vocabulary, samples)

    def _plan(self, capture: Capture) -> Plan:
        inside = self.anatomy
        return resolve(capture, inside.layers, inside.head_counts, inside.vocabulary, inside.other_layers)

    def _sample(
        self,
        questions: Sequence[PosedQuestion],
        number: int,
        request: Request,
        prompt: Prompt,
        tensors: Mapping[str, Tensor],
        config: Any,
    ) -> PromptedSample:
        """What a trace says of one sample of a batch besides what is recorded."""
        question = questions[number]
        places = self.layouts_of(questions, number, prompt, tensors, request.processor)
        with alone_with(self.anatomy.model):  # another thread's run would show its own attention here
            provenance = provenance_of(self.anatomy, self.model, self.processor, question.images, self.checks)
        if places.unknown:
            provenance["places"] = f"not known: {places.unknown}"
        ends, under = ends_of(self.processor.tokenizer, config), in_force(self.anatomy)
        return PromptedSample(question, request, places.layouts, sizes_of(self.anatomy), ends, under, provenance)
