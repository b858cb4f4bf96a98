"""Muon for the matrices, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest
orthogonal matrix, found with a few Newton–Schulz steps; a small transformer learns from about half the samples.
Matrices of one shape are stacked, since on a CPU hundreds of small products would take as long as the forward pass.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration in the post cited above
_MOMENTUM = 0.95
_RMS = 0.2  # root mean square of AdamW's usual updates, so that one learning rate suits both (Liu et al. 2025)


class Muon(torch.optim.Optimizer):
    """Muon over parameters that are all matrices."""

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            stacks: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    stacks[param.shape].append(param)
            for params in stacks.values():
                self._step_stack(params, group["lr"], group["weight_decay"])

    def _step_stack(self, params: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        directions = [self._direction(param, param.grad) for param in params if param.grad is not None]
        updates = orthogonalize(torch.stack(directions))
        scale = _RMS * max(params[0].shape) ** 0.5
        for param, update in zip(params, updates, strict=True):
            param.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * scale)

    def _direction(self, param: nn.Parameter, gradient: Tensor) -> Tensor:
        """Nesterov's momentum."""
        momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(momentum, _MOMENTUM)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """For each matrix of a stack [N, rows, columns] roughly UVᵀ of its singular value decomposition."""
    x = matrices.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Optimizers:
    """Muon and AdamW behind one step, one learning rate and one state."""

    def __init__(self, modules: list[nn.Module], lr: float, share: int = 0, shares: int = 1):
        """Take every ``shares``-th parameter of each shape, from ``share`` on."""
        seen: dict[int, tuple[str, nn.Parameter]] = {}
        for module in modules:
            seen.update({id(param): (name, param) for name, param in module.named_parameters()})
        matrices = [p for name, p in seen.values() if p.ndim == 2 and not _is_table(name)]
        rest = [p for name, p in seen.values() if p.ndim != 2 or _is_table(name)]
        self._all = matrices + rest
        matrices = sorted(matrices, key=lambda p: p.shape)[share::shares]
        rest = sorted(rest, key=lambda p: p.shape)[share::shares]
        self._both = (
            Muon(matrices, lr),
            torch.optim.AdamW(rest, lr, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def step(self, lr: float) -> None:
        """Update this share of the parameters that have a gradient, and clear all gradients.

        Gradients are clipped by the norm of all of them, not of this share; they are left as they are, since other
        shares read the same ones.
        """
        norm = torch.stack([p.grad.norm() for p in self._all if p.grad is not None]).norm()
        scale = (1.0 / norm).clamp(max=1.0)
        for optimizer in self._both:
            for group in optimizer.param_groups:
                group["lr"] = lr
                for param in group["params"]:
                    used = param.grad is not None and bool(param.grad.any())
                    param.grad = param.grad * scale if used else None
            optimizer.step()
        for param in self._all:
            param.grad = None

    def state_dict(self) -> list[dict]:
        """Both optimizers' states."""
        return [optimizer.state_dict() for optimizer in self._both]

    def load_state_dict(self, states: list[dict]) -> None:
        """Take both states back."""
        for optimizer, state in zip(self._both, states, strict=True):
            optimizer.load_state_dict(state)


def _is_table(name: str) -> bool:
    """Whether a matrix is looked up or read out rather than multiplied in the middle."""
    return any(part in name for part in ("embed", "classes", "offset", "lm_head"))
