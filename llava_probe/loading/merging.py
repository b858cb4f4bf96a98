"""Whether an adapter merged into the weights answers as it does beside them, tried on one row.

    merged_as_unmerged(model, inputs)      # 6e-7: of the largest logit, in float32

Merging writes W + BA where the pass computed Wx + B(Ax). Where the two part, the merged model is another: of two tied
weights one was trained (BLIP's word head), a weight is read without its module being run (in Aria's projector), so that
no pass has the update before it is merged, or bfloat16 rounds the update away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from llava_probe.errors import BadInput, BadModel, first_line
from llava_probe.inside.anatomy import anatomy
from llava_probe.inside.passes import alone_with
from llava_probe.inside.tolerance import SCORES
from llava_probe.inside.undo import undoing
from llava_probe.loading.last_logits import (
    SAME_LOGITS,
    last_logits,
    logits_apart,
    nearer_than_none,
    refuse_merged,
    without_adapter,
)

_QUANTISED = "quantised weights round an update that is merged into them; load the model without quantize="


def merged_as_unmerged(model: Any, inputs: Mapping[str, Any]) -> float:
    """How far the logits of a row are off when the adapter is merged; afterwards every weight has its bits again.

    Args:
        model: a PEFT wrapper with its adapter on. A copy of each weight that is merged into is kept meanwhile.
        inputs: of one row, as for ``last_logits``.

    Returns:
        The largest difference over the largest logit.

    Raises:
        BadInput: no PEFT wrapper, its adapter is merged already, or the model refuses these inputs.
        BadModel: it cannot be merged; the difference is more than ``SCORES`` allows this dtype (merging rounds each
            weight once more: 6e-7 to 2e-6 were found in float32, 0.004 to 0.04 in bfloat16); or merging loses as much
            as the adapter changes.
    """
    if not hasattr(model, "merge_adapter"):
        raise BadInput(f"expected a PEFT wrapper with an adapter, got {type(model).__name__}")
    refuse_merged(model)
    inside = anatomy(model).model
    if getattr(inside.config, "quantization_config", None) is not None:
        raise BadModel(_QUANTISED)
    unmerged = last_logits(model, inputs)
    with without_adapter(model):
        base = last_logits(model, inputs)
    with _merged(model):
        merged = last_logits(model, inputs)
    off, limit = logits_apart(merged, unmerged), SCORES[inside.dtype]
    if not off <= limit:
        raise BadModel(
            f"merged, the adapter gives other logits: off by {off:.1e} of the largest, where {inside.dtype} rounds by "
            f"{limit:.0e} at most; one of its updates is merged otherwise than it is applied (of two tied "
            "weights one was trained, or a weight is read without its module being run)"
        )
    if logits_apart(unmerged, base) > SAME_LOGITS and not nearer_than_none(merged - base, unmerged - base):
        raise BadModel(
            "merged, the adapter is lost: the logits are as near to the base's, since its update is less than "
            f"{inside.dtype} rounds; load the model with dtype='float32' to merge"
        )
    return off


def merged(model: Any) -> Any:
    """The model with its adapter's updates in its weights, and no wrapper: what it was given is used up.

    Raises:
        BadModel: it cannot be merged.
    """
    inside = anatomy(model).model
    if getattr(inside.config, "quantization_config", None) is not None:
        raise BadModel(_QUANTISED)
    with alone_with(inside):
        try:
            return model.merge_and_unload().eval()
        except (AttributeError, ValueError, NotImplementedError, TypeError) as error:
            raise BadModel(f"this adapter cannot be merged: {first_line(error)}") from error


@contextmanager
def _merged(model: Any) -> Iterator[None]:
    """Each update in its weight; afterwards the bits from before, where to subtract it again would round."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    touched: dict[nn.Parameter, None] = {parameter: None for layer in layers for parameter in layer.parameters()}
    kept = [(parameter, parameter.detach().to("cpu", copy=True)) for parameter in touched]

    def restore() -> None:
        for layer in layers:
            if layer.merged:
                layer.unmerge()
        for parameter, was in kept:
            parameter.data.copy_(was)

    with alone_with(anatomy(model).model), undoing() as undo:
        undo(restore)
        try:
            model.merge_adapter()
        except (ValueError, NotImplementedError, TypeError) as error:
            raise BadModel(f"this adapter cannot be merged: {first_line(error)}") from error
        yield
