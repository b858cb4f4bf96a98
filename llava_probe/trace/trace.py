"""What one generation left behind: the one record that every analyzer reads.

    trace = vlm.generate("street.jpg", "What does the sign say?")
    trace.answer                                      # "STOP"
    trace.logits, trace.attention                     # [T, V], [T, L, H, K]: entry t predicted generated token t
    trace.hidden(layer=12, at=lp.IMAGE)               # [N, D]: by the model's own layer number and position
    trace.rows(at=trace.find("STOP"), layer=-1)       # [tokens, H, K]
    trace.save("run.trace")

Sizes: T generated tokens, P prompt tokens, K = P + T - 1 keys, L blocks, H heads, D width, V vocabulary. Positions
are places in the whole sequence; only the [T, ...] axes count generated tokens from 0. A trace holds tensors on the
CPU and plain data: nothing of torch's hooks, nothing of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava_probe.border import checked
from llava_probe.errors import NotCaptured
from llava_probe.layout import ImageLayout
from llava_probe.rooms import front_door
from llava_probe.trace import file as trace_file
from llava_probe.trace.distributions import TopK
from llava_probe.trace.explained import IMAGE, PREDICTING, At, Tokens
from llava_probe.trace.explained import positions as named_positions
from llava_probe.trace.kept import kept_columns, kept_rows, picked, squeezed, told_positions
from llava_probe.trace.request import Request, settings, spelled
from llava_probe.trace.sizes import Sizes
from llava_probe.trace.spellings import Spellings
from llava_probe.trace.tokens import Token, find


@checked
@dataclass(frozen=True, eq=False)
class Trace:
    """One generation (or one scored answer) and all that was kept of it.

    Attributes:
        tokens: every token of prompt and answer.
        prompt_length: P.
        answer: the generated text, special tokens left out.
        images: the upright RGB originals; ``layouts``: where their visual tokens lie, one per image.
        request: what was asked; ``sizes``: of the model that answered.
        provenance: with what (model, dtype, versions, hashes), for people to read.
        records: the tensors by name; read them through the properties below.
        hidden_layers, hidden_positions: what the two first axes of the kept hidden states are.
        attention_layers, attention_heads, attention_positions: likewise for attention rows.
        spellings: what the ids of the kept logits and scores spell.
        ends: the ids that are no words of an answer: special ones, and what ends it.
        interventions: what was in force when it was made, outermost first; empty for the model as it is.
        sequence_score: under beam search, the sum of the chosen tokens' scores over length**length_penalty.
        alternatives: the other returned sequences, each a trace.
    """

    tokens: tuple[Token, ...]
    prompt_length: int
    answer: str
    images: tuple[Image.Image, ...]
    layouts: tuple[ImageLayout, ...]
    request: Request
    sizes: Sizes
    provenance: Mapping[str, Any]
    records: Mapping[str, Tensor]
    hidden_layers: tuple[int, ...] = ()
    hidden_positions: tuple[int, ...] = ()
    attention_layers: tuple[int, ...] = ()
    attention_heads: tuple[int, ...] = ()
    attention_positions: tuple[int, ...] = ()
    spellings: Spellings = field(default_factory=Spellings)
    ends: frozenset[int] = frozenset()
    interventions: tuple[Mapping[str, Any], ...] = ()
    sequence_score: float | None = None
    alternatives: tuple[Trace, ...] = ()

    # --- the answer ---

    @property
    def generated_ids(self) -> Tensor:
        """[T] ids of the generated tokens, an ending EOS included."""
        return torch.tensor([token.id for token in self.generated], dtype=torch.long)

    @property
    def generated(self) -> tuple[Token, ...]:
        """The generated tokens."""
        return self.tokens[self.prompt_length :]

    @property
    def question(self) -> str | None:
        """The words as they were asked, before any template; None where only a prompt or inputs were given."""
        return self.request.question

    @property
    def cut_off(self) -> bool:
        """Whether the answer stopped at ``max_new_tokens``, or alone at ``max_length``, and might have gone on."""
        if not self.generated or self.tokens[-1].id in self.ends:
            return False
        asked = self.request.generate
        lengths = {name: asked.get(name) for name in ("max_new_tokens", "max_length")}
        if not any(lengths.values()) and (config := asked.get("generation_config")) is not None:
            lengths = {name: getattr(config, name, None) for name in lengths}
        new = lengths["max_new_tokens"]
        return bool(len(self.generated) == new if new is not None else len(self.tokens) == lengths["max_length"])

    @property
    def scored(self) -> bool:
        """Whether the answer was given (``vlm.score``), not generated."""
        return self.request.answer is not None

    def find(self, text: str, role: str | None = None, occurrence: int | None = None) -> tuple[int, ...]:
        """Positions of the tokens that spell a word or words; see ``llava_probe.trace.tokens.find``."""
        return find(self.tokens, text, role, occurrence)

    # --- what was kept, by step ---

    @property
    def logits(self) -> Tensor:
        """[T, V] float32, the model's own."""
        return self._distribution("logits")

    @property
    def scores(self) -> Tensor:
        """[T, V] float32, what was sampled from: after temperature, top-p and the other processors."""
        return self._distribution("scores")

    def top(self, name: str = "logits") -> TopK:
        """The kept largest ``"logits"`` or ``"scores"`` of each step, where only those were kept."""
        if f"{name}.values" not in self.records:
            raise NotCaptured(f"the top {name} were not kept apart; pass Capture({name}=k), or read trace.{name}")
        return TopK(**{part: self.records[f"{name}.{part}"] for part in TopK.__dataclass_fields__})

    def kept(self, name: str) -> bool:
        """Whether a record (``"logits"``, ``"scores"``, ``"hidden"``, ``"attention"`` ...) is held in full."""
        return name in self.records

    @property
    def hidden_states(self) -> Tensor:
        """[T, layers, D] at the positions that predicted each token; layers as in ``hidden_layers``."""
        return self._predicting("hidden", self.hidden_positions, "positions", "hidden_states")

    @property
    def attention(self) -> Tensor:
        """[T, layers, heads, K] weights of the predicting queries; layers as in ``attention_layers``."""
        return self._predicting("attention", self.attention_positions, "attention_positions", "attention")

    @property
    def predicting(self) -> range:
        """The position that predicted each generated token: P - 1 to P + T - 2."""
        return range(self.prompt_length - 1, len(self.tokens) - 1)

    # --- what was kept, by layer and position ---

    def positions(self, at: Tokens) -> list[int]:
        """Sequence positions that ``at`` names.

        Args:
            at: a position (negative counts from the end), a word of the answer, else of the prompt, a place, or a
                list of these; None for the content words of the answer. Places are ``lp.IMAGE``, ``lp.TEXT`` (the
                prompt without its visual tokens), ``lp.PROMPT`` (its words), ``lp.QUESTION`` (the words as they were
                asked), ``lp.LAST`` (the last prompt position), ``lp.PREDICTING``, ``lp.ANSWER`` (without what ends
                it), ``lp.GENERATED``, ``lp.SPECIAL`` and ``lp.ALL`` (every token that was fed to the model: not the
                last). Their names as strings, ``"image"``, say the same where they are no words of this trace.

        Raises:
            OutOfRange: a position or word that is not there.
            BadInput: a string that is the name of a place and a word of this trace.
        """
        return named_positions(self, at)

    def hidden(self, layer: int | Sequence[int] | None = None, at: At = PREDICTING) -> Tensor:
        """Hidden states by the model's own layer number and by sequence position.

        Args:
            layer: 0 the embedding (at visual tokens: the projector's output), L after the final norm; negative
                counts from the end; a list keeps its axis; None: all kept.
            at: see ``positions``; a single number drops its axis.

        Returns:
            [positions, layers, D], without the axes that a single number named.

        Raises:
            NotCaptured: a layer or position that was not kept.
        """
        if "hidden" not in self.records:
            raise NotCaptured("hidden states were not kept; pass Capture(hidden_states=True)")
        rows = kept_rows(self, at, self.hidden_positions, "hidden states", "positions")
        columns = kept_columns(layer, self.hidden_layers, self.sizes.hidden_layers, "hidden states of layer", "layers")
        return squeezed(picked(self.records["hidden"], rows, columns), at, layer)

    def rows(
        self, at: At = PREDICTING, layer: int | Sequence[int] | None = None, head: int | Sequence[int] | None = None
    ) -> Tensor:
        """Attention rows by query position and by the model's own block and head numbers.

        Returns:
            [positions, layers, heads, K], without the axes that a single number named.

        Raises:
            NotCaptured: a position, layer or head that was not kept.
        """
        axes = self._weights(at, layer, head)
        return squeezed(picked(self.records["attention"], *axes), at, layer, head)

    def each_row(
        self, at: At, layer: int | Sequence[int] | None = None, head: int | Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        """The same, [layers, heads, K] of one position after another: whole matrices may be kept, too large to copy.

        Raises:
            NotCaptured: before the first row, a position, layer or head that was not kept.
        """
        rows, layers, heads = self._weights(at, layer, head)
        return (squeezed(picked(self.records["attention"][row], layers, heads), layer, head) for row in rows)

    @property
    def vision_hidden_states(self) -> Tensor:
        """[crops, L_v + 1, S, D_v] of the vision tower: 0 its embedding, then each block's output."""
        return self._vision("vision_hidden")

    @property
    def vision_attention(self) -> Tensor:
        """[crops, L_v, H_v, S, S] weights of the vision tower."""
        return self._vision("vision_attention")

    @property
    def projected(self) -> Tensor:
        """[N, D] visual tokens as the language model gets them: hidden state 0 at the image positions."""
        return self.hidden(layer=0, at=IMAGE)

    # --- as a file, as a page ---

    def save(self, path: str | Path) -> Path:
        """Write everything to one file, atomically; see ``llava_probe.trace.file``."""
        return trace_file.save_trace(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a saved trace; no model is needed."""
        return trace_file.load_trace(path, cls)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        plain = [name for name in self.__dataclass_fields__ if name not in ("records", "images", "request")]
        return (
            all(getattr(self, name) == getattr(other, name) for name in plain)
            and _same_tensors(self.records, other.records)
            and [(i.size, i.tobytes()) for i in self.images] == [(i.size, i.tobytes()) for i in other.images]
            and settings(self.request) == settings(other.request)
            and _same_tensors(self.request.inputs or {}, other.request.inputs or {})
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        lengths = f"{self.prompt_length} + {len(self.generated)} tokens"
        return f"Trace({self.answer!r}, {lengths}, {_kept(self.records)}{self._under})"

    def page(self, path: str | Path, *others: Any) -> Path:
        """Write a page for the browser, one file without network: ``lp.page([trace, *others], path)``."""
        return front_door().page([self, *others], path)  # type: ignore[no-any-return]

    def _repr_html_(self) -> str:
        return front_door().view(self)._repr_html_()  # type: ignore[no-any-return]

    # --- details ---

    @property
    def _under(self) -> str:
        """What was in force, as a line goes on."""
        return "".join(f", under {spelled(each)}" for each in self.interventions)

    def _distribution(self, name: str) -> Tensor:
        if name in self.records:
            return self.records[name]
        if f"{name}.values" in self.records:
            raise NotCaptured(
                f"only the top {self.records[f'{name}.values'].shape[1]} {name} were kept: read trace.top({name!r}), "
                f"or pass Capture({name}=True)"
            )
        if name == "scores" and self.scored:
            raise NotCaptured("a scored answer has no scores: nothing was sampled; read trace.logits")
        raise NotCaptured(f"{name} were not kept; pass Capture({name}=True)")

    def _predicting(self, record: str, kept: tuple[int, ...], field_name: str, flag: str) -> Tensor:
        if record not in self.records:
            raise NotCaptured(f"{flag.replace('_', ' ')} were not kept; pass Capture({flag}=True)")
        first = self.prompt_length - 1
        if not kept or kept[-1] != len(self.tokens) - 2 or first not in kept:
            raise NotCaptured(
                f"the predicting positions were not kept, only {told_positions(kept)}; pass "
                f'Capture({field_name}=["predicting", ...])'
            )
        return self.records[record][kept.index(first) :]

    def _vision(self, record: str) -> Tensor:
        if record not in self.records:
            raise NotCaptured("the vision tower was not kept; pass Capture(vision=True)")
        return self.records[record]

    def _weights(self, at: At, layer: Any, head: Any) -> tuple[list[int], list[int], list[int]]:
        """Where rows, layers and heads stand along the three first axes of the kept attention."""
        if "attention" not in self.records:
            raise NotCaptured("attention rows were not kept; pass Capture(attention=True)")
        rows = kept_rows(self, at, self.attention_positions, "attention rows", "attention_positions")
        total, among = self.sizes.layers, self.sizes.heads
        others = self.sizes.other_layers
        layers = kept_columns(layer, self.attention_layers, total, "attention of layer", "attention_layers", others)
        heads = kept_columns(head, self.attention_heads, among, "attention of head", "heads")
        return rows, layers, heads


def _same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def _kept(records: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in records.items() if "." not in name)
