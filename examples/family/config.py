"""Sizes of the two models. No torch here, so that export and tests can read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a llama model; every row length is a multiple of 32, as Q8_0 and Q4_0 need."""

    width: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int = 2048
    context: int = 1024
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Length of one attention head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Number of weights, the shared embedding counted once."""
        d = self.width
        layer = 4 * d * d + 3 * d * self.hidden + 2 * d
        return self.layers * layer + self.vocabulary * d + d


MODELS = {
    "brook": ModelConfig(width=128, layers=4, heads=4, hidden=384),
    "river": ModelConfig(width=192, layers=8, heads=6, hidden=544),
}
