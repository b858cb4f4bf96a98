"""What ``generate`` takes besides the question, by name and kind, before anything runs.

transformers reads most of its settings in the middle of decoding: ``num_beams="4"`` ends in a comparison, a cache of 0
in a tensor of the wrong size, a mistyped name after the pictures were encoded. Here each is what its documentation
says, within limits that a trace can hold, or refused by name. What a model's own ``forward`` takes goes on to it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol, TypedDict, get_type_hints, runtime_checkable

from torch import Tensor
from transformers import GenerationConfig

from llava_probe.border import Count, CountFromZero, Finite, Limits, Portion, Positive, read_as
from llava_probe.errors import BadInput
from llava_probe.inside import seam

#: Each has keys and values of its own.
Beams = Annotated[int, Limits(1, 1_000)]
#: Of the vocabulary.
Id = Annotated[int, Limits(0, 2**31 - 1)]
#: People say -1 for no end at all.
EndId = Annotated[int, Limits(-1, 2**31 - 1)]
#: A chance that is neither never nor always.
Cutoff = Annotated[float, Limits(0, 1)]


@runtime_checkable
class Streamer(Protocol):
    """What is told each token as it comes."""

    def put(self, value: Any) -> None:
        """Take one step's tokens."""

    def end(self) -> None:
        """Take note that there are no more."""


class Decoding(TypedDict, total=False):
    """The settings of ``transformers.GenerationConfig`` and the arguments of ``generate`` whose kinds are known."""

    max_new_tokens: Count | None
    max_length: Count | None
    min_length: CountFromZero | None
    min_new_tokens: CountFromZero | None
    early_stopping: bool | Literal["never"] | None
    max_time: Positive | None
    stop_strings: str | Sequence[str] | None
    do_sample: bool | None
    num_beams: Beams | None
    num_beam_groups: Beams | None
    num_return_sequences: Beams | None
    diversity_penalty: Finite | None
    penalty_alpha: Finite | None
    use_cache: bool | None
    use_mtp: bool | None
    cache_implementation: str | None
    cache_config: Mapping[str, Any] | None
    max_cache_len: Count | None
    low_memory: bool | None
    temperature: Positive | None
    top_k: Annotated[int, Limits(0, 2**31 - 1)] | None
    top_p: Portion | None
    min_p: Portion | None
    top_h: Annotated[float, Limits(above=0, most=1)] | None
    typical_p: Annotated[float, Limits(above=0, most=1)] | None
    epsilon_cutoff: Cutoff | None
    eta_cutoff: Cutoff | None
    repetition_penalty: Positive | None
    encoder_repetition_penalty: Positive | None
    length_penalty: Finite | None
    no_repeat_ngram_size: CountFromZero | None
    encoder_no_repeat_ngram_size: CountFromZero | None
    bad_words_ids: Sequence[Sequence[Id]] | None
    force_words_ids: Sequence[Sequence[Id] | Sequence[Sequence[Id]]] | None
    sequence_bias: Mapping[tuple[Id, ...], Finite] | Sequence[tuple[Sequence[Id], Finite]] | None
    suppress_tokens: Sequence[Id] | None
    begin_suppress_tokens: Sequence[Id] | None
    forced_bos_token_id: Id | None
    forced_eos_token_id: Id | Sequence[Id] | None
    renormalize_logits: bool | None
    remove_invalid_values: bool | None
    exponential_decay_length_penalty: tuple[CountFromZero, Positive] | None
    token_healing: bool | None
    guidance_scale: Positive | None
    prefill_chunk_size: Count | None
    disable_compile: bool | None
    prompt_lookup_num_tokens: Count | None
    pad_token_id: Id | None
    bos_token_id: Id | None
    eos_token_id: EndId | Sequence[EndId] | None
    decoder_start_token_id: Id | Sequence[Id] | None
    generation_config: GenerationConfig | None
    logits_processor: Sequence[Callable[..., Any]] | None
    stopping_criteria: Sequence[Callable[..., Any]] | None
    prefix_allowed_tokens_fn: Callable[..., Any] | None
    streamer: Streamer | None
    synced_gpus: bool | None
    use_model_defaults: bool | None


class Asked(TypedDict, total=False):
    """Ways of asking besides a picture and a question, and how they are put into tensors."""

    video: Any
    prompt: str | None
    messages: Sequence[Mapping[str, Any]] | None
    inputs: Mapping[str, Tensor] | None
    system: str | None
    processor_kwargs: Mapping[str, Any] | None
    template_kwargs: Mapping[str, Any] | None


#: Settings whose ids are looked up in the logits.
_LOOKED_UP = (
    "bad_words_ids",
    "force_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
_KINDS: Mapping[str, Any] = get_type_hints(Decoding, include_extras=True)


def read_options(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``generate`` as their kinds are, those of a ``generation_config`` among them looked at too.

    Args:
        model: whose ``generate`` it is.
        given: by name.

    Raises:
        BadInput: a name that neither ``generate`` nor the model's ``forward`` knows, or a value of another kind.
    """
    vocabulary = len(model.get_input_embeddings().weight)
    known = {*_KINDS, *seam.generate_names(model), *vars(GenerationConfig())}
    for name in given:
        if name not in known:
            meant = difflib.get_close_matches(name, sorted(known), 1)
            raise BadInput(
                f"generate has no option {name}={', did you mean ' + meant[0] + '=?' if meant else ', nor has '}"
                f"{'' if meant else type(model).__name__ + '.forward'}"
            )
    read = {name: _read(name, value, vocabulary) for name, value in given.items()}
    config = read.get("generation_config")
    for name in _KINDS if config is not None else ():
        if getattr(config, name, None) is not None:
            _read(name, getattr(config, name), vocabulary)
    return read


def _read(name: str, value: Any, vocabulary: int) -> Any:
    found = read_as(_KINDS.get(name, Any), value, f"generate({name}=...)")
    if name in _LOOKED_UP and found is not None:
        wrong = [each for each in _ids(found) if each >= vocabulary]
        if wrong:
            raise BadInput(f"generate({name}=...) names id {wrong[0]}; this model has ids 0 to {vocabulary - 1}")
    return found


def _ids(given: Any) -> list[int]:
    """All whole numbers in nested lists and keys."""
    if isinstance(given, Mapping):
        given = list(given)
    if hasattr(given, "__index__"):
        return [int(given)]
    return [] if isinstance(given, float) else [each for part in given for each in _ids(part)]
