"""How long a sequence a model reads: told before it runs for minutes over what it cannot read."""

from __future__ import annotations

import warnings

from llava_probe.errors import BadInput
from llava_probe.inside.anatomy import Anatomy

#: Rotary positions that were stretched or that come in three axes: more tokens than the config says may still be read.
_SOFT = ("dynamic", "yarn", "longrope", "linear", "llama3", "proportional")


def check_length(anatomy: Anatomy, prompt: int, answer: int = 0) -> None:
    """A prompt and an answer are no longer than the model reads.

    Args:
        anatomy: of the model.
        prompt, answer: tokens that it is to read, those of pictures among them.

    Raises:
        BadInput: they are longer; a warning, where the model's positions may reach further than its config says.
    """
    config = anatomy.decoder.owner.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int) or prompt + answer <= most:
        return
    what = f"the prompt has {prompt:,} tokens" + (f" and the answer {answer + 1:,}" if answer else "")
    told = f"{what}; {type(anatomy.model).__name__} reads {most:,} (max_position_embeddings)"
    if _soft(config):
        warnings.warn(f"{told}: what it makes of more is its own affair", stacklevel=4)
    else:
        raise BadInput(f"{told}; ask in fewer words, or show smaller or fewer pictures")


def _soft(config: object) -> bool:
    """Whether positions may reach further: a stretched rotary embedding, or one of several axes."""
    told = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [told, *(part for part in told.values() if isinstance(part, dict))]
    return any("mrope_section" in part or part.get("rope_type", part.get("type")) in _SOFT for part in parts)
