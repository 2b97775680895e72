"""What is computed from samples: medians, percentiles, ratios of alternating pairs.

Plain Python on purpose: samples are few, and the definitions stand where they are used.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest sample that at least ``share`` (0 to 1) of all samples do not exceed.

    The nearest-rank definition: always one of the samples, never a number between two. Raises
    ``ValueError`` without samples or outside [0, 1].
    """
    if not values or not 0.0 <= share <= 1.0:
        raise ValueError(f"no {share} percentile of {len(values)} samples")
    # Rounded before the ceiling: 0.07 * 100 is 7.000000000000001.
    rank = -int(-round(share * len(values), 9) // 1)
    return sorted(values)[max(rank, 1) - 1]


@dataclass(frozen=True, slots=True)
class Ratio:
    """``value`` is the median of the pairs' ratios; ``low`` and ``high`` the extreme pairs."""

    value: float
    low: float
    high: float


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Ratios of samples taken in turn: a machine that drifts moves both halves of a pair.

    Raises ``ValueError`` for samples that are no pairs, or not positive.
    """
    if not ours or len(ours) != len(theirs) or min(*ours, *theirs) <= 0:
        raise ValueError(f"{len(ours)} and {len(theirs)} samples are no pairs of positive numbers")
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the pairs' differences, ours less theirs."""
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} samples are no pairs")
    return statistics.median(a - b for a, b in zip(ours, theirs, strict=True))


def spread(values: Sequence[float]) -> float:
    """Half the distance between the extremes, as a share of the median; 0 for a single sample."""
    middle = statistics.median(values)
    return 0.0 if middle == 0 else (max(values) - min(values)) / 2 / abs(middle)
