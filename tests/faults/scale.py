"""How much of a row is run, and small arithmetic."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

Measured = dict[str, float]
"""A row's values by the last part of their names."""


class CannotRun(Exception):
    """A row needs what this machine does not have."""


@dataclass(frozen=True)
class Scale:
    """``is_short`` is for CI; ``base_seed`` begins every random schedule, and is printed."""

    is_short: bool
    base_seed: int = 20_261

    def of(self, whole: int, *, short: int) -> int:
        return short if self.is_short else whole

    def seconds(self, whole: float, *, short: float) -> float:
        return short if self.is_short else whole

    def seed(self, row: str) -> int:
        seed = self.base_seed * 10_000 + zlib.crc32(row.encode()) % 10_000
        print(f"{row}: seeds from {seed}", flush=True)
        return seed


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a share ``q`` lies; infinite for none."""
    if not values:
        return float("inf")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
