"""Steps are torch's own Adam's, also of one that was written down in between."""

import torch

from llava_probe.lens.adam import Adam


def test_steps_are_torchs():
    drawn = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=drawn), torch.randn(5, generator=drawn)]
    theirs = [value.clone().requires_grad_() for value in start]
    optimizer, ours = torch.optim.Adam(theirs, lr=1.0), Adam([value.clone() for value in start])
    for rate in (0.1, 0.05, 0.02, 0.01):
        slopes = [torch.randn(value.shape, generator=drawn) for value in start]
        for value, slope in zip(theirs, slopes, strict=True):
            value.grad = slope.clone()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        ours = Adam.from_tensors({name: held.clone() for name, held in ours.tensors().items()}, ours.taken)
        ours.step(slopes, rate)
        for one, other in zip(ours.values, theirs, strict=True):
            torch.testing.assert_close(one, other.detach(), atol=1e-7, rtol=1e-6)
