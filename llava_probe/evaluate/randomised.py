"""A model whose last layers know nothing: what a map of it still shows was never the model's doing.

Adebayo et al. 2018, "Sanity Checks for Saliency Maps" (arXiv 1810.03292): weights are drawn anew from the top down, and
a method that explains the model must change with them.

    with randomised(vlm, 2):             # the last two blocks of the language model; all of them by default
        lp.attribute(vlm, vlm.rerun(trace, answer=trace.generated_ids))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llava_probe.border import CountFromZero, Seed, checked
from llava_probe.errors import BadInput, BadModel
from llava_probe.inside import seam
from llava_probe.inside.passes import alone_with
from llava_probe.inside.undo import undoing
from llava_probe.model import VLM


@checked
@contextmanager
def randomised(vlm: VLM, blocks: CountFromZero | None = None, *, seed: Seed = 0) -> Iterator[None]:
    """Let the last blocks of the language model have random weights while this lasts; then they are as before.

    Args:
        vlm: the model.
        blocks: how many, from the top; all by default.
        seed: of the draws: normal, with each tensor's own mean and standard deviation.

    Raises:
        BadInput: more blocks than there are.
        BadModel: quantised weights, which cannot be drawn.
    """
    decoder = vlm.anatomy.decoder.blocks
    count = len(decoder) if blocks is None else blocks
    if not 0 <= count <= len(decoder):
        raise BadInput(f"blocks= takes 0 to {len(decoder)}; got {blocks}")
    chosen = [weight for block in decoder[len(decoder) - count :] for weight in block.parameters()]
    if any(not weight.is_floating_point() or weight.is_meta for weight in chosen):
        raise BadModel("quantised or offloaded weights cannot be drawn anew; load the model in bfloat16 or float32")
    before = [weight.detach().to("cpu", copy=True) for weight in chosen]
    generator = torch.Generator().manual_seed(seed)

    def put_back() -> None:
        with torch.no_grad():
            for weight, own in zip(chosen, before, strict=True):
                weight.copy_(own)

    with alone_with(vlm.anatomy.model), undoing() as undo:
        undo(seam.modes_as_now())
        undo(put_back)
        torch.set_grad_enabled(False)
        for weight in chosen:
            noise = torch.randn(weight.shape, generator=generator)
            spread, mean = weight.float().std(correction=0).cpu(), weight.float().mean().cpu()
            weight.copy_(mean + spread * noise)
        yield
