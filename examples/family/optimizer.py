"""Muon for the matrices: momentum, then the nearest (semi-)orthogonal matrix as the step.

Written out in float32, since the usual bfloat16 form is slow on CPUs without bfloat16 units.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

# Odd quintics, the best for singular values from 1e-3 to 1 when used in this order: "The Polar
# Express", Amsel et al. 2025 (arXiv 2505.16932). Three do what four Newton-Schulz steps did.
_QUINTICS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return matrices (count, rows, columns) with their singular values pushed to about one."""
    x = matrices
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    # All factors are polynomials in x x^T, so they commute: the long side is touched twice only.
    gram = x @ x.mT
    one = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    factors: list[Tensor] = []
    for a, b, c in _QUINTICS:
        for last in factors[-1:]:
            gram = last @ gram @ last
        factors.append(a * one + b * gram + c * (gram @ gram))
    x = functools.reduce(torch.matmul, factors) @ x
    return x.mT if tall else x


def _parts(matrix: Tensor, count: int) -> Tensor:
    """View a stack of ``count`` matrices as (count, rows, columns)."""
    rows, columns = matrix.shape
    return matrix.view(count, rows // count, columns)


class Muon:
    """Muon over two-dimensional parameters, with Nesterov momentum.

    A parameter may be a stack of several matrices (query, key and value, say): ``stacks`` holds
    how many each one is, since each is made orthogonal on its own.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        stacks: list[int],
        rate: float = 0.02,
        momentum: float = 0.95,
    ) -> None:
        self.parameters, self.stacks = parameters, stacks
        self.rate, self.momentum = rate, momentum
        self.buffers = [torch.zeros_like(p) for p in parameters]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self, rate: float | None = None) -> None:
        """Take one step; matrices of one shape are orthogonalised together."""
        rate = self.rate if rate is None else rate
        groups: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for p, count, buffer in zip(self.parameters, self.stacks, self.buffers, strict=True):
            if p.grad is None:
                continue
            buffer.lerp_(p.grad, 1 - self.momentum)
            update = _parts(p.grad.lerp(buffer, self.momentum), count)
            target = _parts(p.data, count)
            for part, goal in zip(update, target, strict=True):
                groups.setdefault(tuple(part.shape), []).append((part, goal))
        for (rows, columns), pairs in groups.items():
            steps = orthogonalise(torch.stack([part for part, _ in pairs]))
            scale = rate * max(1.0, rows / columns) ** 0.5
            for step, (_, goal) in zip(steps, pairs, strict=True):
                goal.add_(step, alpha=-scale)

    def state_dict(self) -> dict[str, Any]:
        """Return the momentum buffers."""
        return {"buffers": self.buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the momentum buffers."""
        for buffer, saved in zip(self.buffers, state["buffers"], strict=True):
            buffer.copy_(saved)
