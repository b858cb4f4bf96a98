"""Traces written by hand, so that what an analyzer must find is known.

The photograph is 50 × 20 pixels of which a crop shows x from 10 to 40: two rows of three visual tokens, 10 pixels each.
"""

import numpy as np
import torch
from PIL import Image

from llava_probe.layout import ImageLayout
from llava_probe.pictures.images import fingerprint
from llava_probe.trace.sizes import Sizes
from llava_probe.trace.spellings import Spellings
from llava_probe.trace.tokens import Token
from llava_probe.trace.trace import Request, Trace

SIZE = (50, 20)
IMAGE_AT = range(2, 8)
PROMPT = [("<s>", "special"), ("USER:", "prompt"), *[("<image>", "image")] * 6, (" what", "prompt"), ("?", "prompt")]
ANSWER = [" ST", "OP", " sign", "</s>"]
P, T = len(PROMPT), len(ANSWER)
K = P + T - 1
TEXTS = {
    0: "<s>",
    1: "</s>",
    2: " yes",
    3: "Yes",
    4: "no",
    5: " No",
    6: " ST",
    7: "OP",
    8: " sign",
    9: "<image>",
    10: "x",
}


def layout() -> ImageLayout:
    x, y = np.meshgrid([10.0, 20.0, 30.0], [0.0, 10.0])
    boxes = np.stack([x, y, x + 10, y + 10], axis=-1).reshape(-1, 4)
    return ImageLayout(SIZE, np.array(IMAGE_AT), boxes, np.zeros(6, dtype=np.int64), (2, 3))


def photograph(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def causal(layers: int = 3, heads: int = 2, seed: int = 0, size: int = K) -> torch.Tensor:
    """Random causal attention, [K, L, H, K]."""
    weights = torch.rand(size, layers, heads, size, generator=torch.Generator().manual_seed(seed)) ** 4
    weights = weights * torch.ones(size, size).tril()[:, None, None]
    return weights / weights.sum(-1, keepdim=True)


def synthetic_trace(
    *, attention=None, hidden=None, logits=None, answer=ANSWER, layers=3, image=None, **changes
) -> Trace:
    """A trace of the prompt above with these records; attention and hidden states of every fed position."""
    ids = {text: number for number, text in TEXTS.items()}
    parts = [*PROMPT, *((text, "generated") for text in answer)]
    tokens = tuple(Token(ids.get(text, 10), text, role, place) for place, (text, role) in enumerate(parts))
    image = photograph() if image is None else image
    records = {"attention": attention, "hidden": hidden, "logits": logits}
    fed = tuple(range(len(tokens) - 1))
    fields = {
        "tokens": tokens,
        "prompt_length": P,
        "answer": "".join(answer).replace("</s>", "").strip(),
        "images": (image,),
        "layouts": (layout(),),
        "request": Request("a prompt"),
        "sizes": Sizes(layers, 2 if attention is None else attention.shape[2], len(TEXTS), 4, "float32"),
        "ends": frozenset({0, 1, 9}),
        "provenance": {
            "class": "Synthetic",
            "dtype": "float32",
            "images": [fingerprint(image)],
        },
        "records": {name: tensor for name, tensor in records.items() if tensor is not None},
        "spellings": Spellings(TEXTS, frozenset({0, 1, 9}), whole=True),
    }
    if attention is not None:
        fields |= {
            "attention_layers": tuple(range(layers)),
            "attention_heads": tuple(range(attention.shape[2])),
            "attention_positions": fed[-len(attention) :],
        }
    if hidden is not None:
        fields |= {"hidden_layers": tuple(range(layers + 1)), "hidden_positions": fed}
    return Trace(**fields | changes)
