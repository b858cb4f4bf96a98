"""What to keep in mind before a map is believed, one line a method, shown beside it wherever it is shown."""

from __future__ import annotations

_GRADIENT = "The slope at this input alone: noisy, and near zero where the model is certain."
_REMOVED = "Says what the word loses without a part; a picture with a hole is one that the model was not trained on."

#: By the name of a map's method.
LIMITS: dict[str, str] = {
    "attention": "Where information could have come from, not what it was used for; sinks draw attention without content.",
    "relative_attention": "What the question adds to a neutral one; where the neutral map is near zero, noise grows.",
    "rollout": "Multiplies attention through the layers as if values and MLPs did not matter.",
    "attention_gradient": "Attention weighted by its gradient: blind to what reaches the word through MLPs.",
    "gradient": _GRADIENT,
    "input_x_gradient": _GRADIENT,
    "llava_cam": "One layer's features weighted by their gradient: as coarse as that layer.",
    "integrated_gradients": "Depends on what it is compared with: a picture without content, and the path from there.",
    "relevance": "Drops what would count against the word; near certainty it still follows attention.",
    "attnlrp": "Signed, and adds up to the logit: for the word and against it may lie side by side.",
    "tam": "What the projected features say by themselves, less what earlier words explain; no causal claim.",
    "localisation_heads": "A few heads that were chosen because they point at objects: ask why only of what they show.",
    "occlusion": _REMOVED,
    "rise": f"{_REMOVED} An estimate from random masks.",
    "probe": "What can be read out at a place, not what the model uses there.",
}

#: For a method that is not among them.
UNKNOWN = "A map says what its method measures, no more."


def limit_of(method: str) -> str:
    """The line of a method, by its name or the first words of it."""
    return next((line for name, line in LIMITS.items() if method == name), None) or next(
        (line for name, line in LIMITS.items() if method.startswith(name)), UNKNOWN
    )
