"""How much of a row is run, and small arithmetic."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

Measured = dict[str, float]
"""A row's values by the last part of their names."""


MOST_TOLD = 5
"""So many lines a row prints of one kind of trouble."""


class CannotRun(Exception):
    """A row gave no figures here: in a whole run that is a failure."""


class NotInstalled(CannotRun):
    """A row needs an optional piece that this machine does not have: no failure."""


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


def tell(row: str, lines: Sequence[str]) -> None:
    """Print what went wrong: the first few, and how many there were."""
    for line in lines[:MOST_TOLD]:
        print(f"{row}: {line}", flush=True)
    if len(lines) > MOST_TOLD:
        print(f"{row}: and so on, {len(lines)} in all", flush=True)


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a share ``q`` lies; infinite for none."""
    if not values:
        return float("inf")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
