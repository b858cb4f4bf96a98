"""How an answer is made: the settings of ``generate``, and those with which it would leave no trace to keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers

from llava_probe.asking.options import read_options
from llava_probe.errors import BadInput
from llava_probe.faults import refusals
from llava_probe.inside import seam

#: How long an answer may get where nobody says.
DEFAULT_NEW_TOKENS = 64
#: The answer that is the same at every call, whatever the model's own generation config says.
GREEDILY: Mapping[str, Any] = {"do_sample": False, "num_beams": 1}

#: Decoding whose every step makes one token, so that every record has one row a step.
_MODES = ("greedy_search", "sample", "beam_search", "beam_sample")

_OURS = {
    "return_dict_in_generate": "a trace is always returned",
    "output_attentions": "Capture(attention=...) keeps attention rows",
    "output_hidden_states": "Capture(hidden_states=..., layers=...) keeps hidden states",
    "output_scores": "Capture(scores=...) keeps scores",
    "output_logits": "Capture(logits=...) keeps logits",
    "inputs_embeds": "ready-made inputs go into inputs=",
    "past_key_values": "a trace begins with its own prompt, with nothing read before it",
}

#: Arguments of generate that are no settings of its config.
_OBJECTS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer", "tokenizer", "synced_gpus")


def check_decoding(model: Any, arguments: Mapping[str, Any]) -> Any:
    """The generation config that these arguments lead to.

    Raises:
        BadInput: arguments that are ours to set, no new tokens, or decoding that makes several tokens a step.
    """
    for name, instead in _OURS.items():
        if name in arguments:
            raise BadInput(f"generate({name}=...) is not yours to set here: {instead}")
    for name in ("custom_generate", "assistant_model"):
        if arguments.get(name) is not None:
            raise BadInput(f"{name}= is not supported: it makes several tokens a step, or runs a loop we cannot see")
    given = {name: value for name, value in arguments.items() if name not in ("generation_config", *_OBJECTS)}
    with refusals(f"the settings of {type(model).__name__}.generate"):
        config = seam.generation_config(model, arguments.get("generation_config"), given)
        mode = config.get_generation_mode()
    mode = str(getattr(mode, "value", mode))
    if mode not in _MODES:
        raise BadInput(
            f"{mode.replace('_', ' ')} is not supported: a trace needs one forward step a token "
            f"(greedy, sampling, beams)"
        )
    if config.prefill_chunk_size and not seam.encodes_first(model):
        raise BadInput(
            f"prefill_chunk_size: {type(model).__name__} of transformers {transformers.__version__} cannot cut a "
            "prompt with a picture into chunks; leave it out"
        )
    return config


def with_a_length(model: Any, max_new_tokens: int | None, generate_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate``, each of its kind, with a length where nobody gave one.

    Raises:
        BadInput: an unknown name, or a value of another kind.
    """
    generate_kwargs = read_options(model, generate_kwargs)
    if max_new_tokens is None and not {"max_length", "generation_config"} & set(generate_kwargs):
        max_new_tokens = model.generation_config.max_new_tokens or DEFAULT_NEW_TOKENS
    if max_new_tokens is None:
        return dict(generate_kwargs)
    return {"max_new_tokens": max_new_tokens, **generate_kwargs}
