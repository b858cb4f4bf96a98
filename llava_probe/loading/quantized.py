"""Weights in fewer bits, by a short word: bitsandbytes' settings as its papers have them.

``"8bit"`` is LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339), ``"4bit"`` is NF4 (Dettmers et al. 2023,
arXiv:2305.14314).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from llava_probe.errors import BadInput, BadModel

_WORDS = ("4bit", "8bit")


def check_quantize(quantize: Any, settings: Mapping[str, Any], *, adapter: Any, random_weights: Any) -> None:
    """Refuse what cannot go together, or is not installed, before anything is read.

    Raises:
        BadInput: another word, or two settings that exclude each other.
        BadModel: bitsandbytes is not installed.
    """
    if random_weights is not None and (adapter is not None or quantize is not None):
        other = "adapter" if adapter is not None else "quantize"
        raise BadInput(f"random_weights= and {other}= exclude each other: nothing of what was learnt is kept")
    if quantize is None:
        return
    if quantize not in _WORDS:
        raise BadInput(f"quantize= takes {' or '.join(map(repr, _WORDS))}; got {quantize!r}")
    if settings.get("quantization_config") is not None:
        raise BadInput("quantize= and quantization_config= say the same thing; give one of them")
    if find_spec("bitsandbytes") is None:
        raise BadModel(f"quantize={quantize!r} needs bitsandbytes; pip install 'llava_probe[quantize]'")


def quantization_config(quantize: str, dtype: Any) -> Any:
    """Settings of transformers for one of ``_WORDS``; ``dtype`` is that of the arithmetic, bfloat16 by default."""
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=str(dtype or "bfloat16").removeprefix("torch."),
    )
