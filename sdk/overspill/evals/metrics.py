"""What a router is worth, from its scores and both models' results. Definitions in full:

``PGR(x)``   share of the gap between the two models that is recovered when the share ``x`` of the
             prompts with the highest scores goes to the large model
``APGR``     the integral of PGR over x from 0 to 1; random is 0.5
``CPT(p)``   the least x with PGR(x) >= p; random is p
All n + 1 cut points count, and ties are broken at random: the curve is the expected one.
After Ong et al., "RouteLLM: Learning to Route LLMs with Preference Data" (2024), section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MIN_GAP = 0.05
"""Under this difference of the two models' mean quality, PGR is a quotient of noise."""
_ECE_BINS = 15
_EPS = 1e-12


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Both models' quality on each prompt, 0 to 1; shape (n,) each."""

    small: Floats
    large: Floats

    def __len__(self) -> int:
        return len(self.small)

    @property
    def gain(self) -> Floats:
        """What the large model adds, -1 to 1; shape (n,)."""
        return self.large - self.small

    @property
    def gap(self) -> float:
        """The difference of the mean qualities."""
        return float(self.gain.mean())

    def take(self, rows: NDArray[np.intp]) -> Outcomes:
        """The outcomes of some rows."""
        return Outcomes(self.small[rows], self.large[rows])


def gap_problem(outcomes: Outcomes) -> str | None:
    """Why shares of the gap mean nothing here, or None."""
    if outcomes.gap >= MIN_GAP:
        return None
    return (
        f"the large model is {100 * outcomes.gap:.1f} points better than the small one: "
        f"under {100 * MIN_GAP:.0f} points a share of the gap is undefined"
    )


def quality_curve(score: Floats, outcomes: Outcomes) -> Floats:
    """Expected mean quality when the k highest scores go to the large model, k = 0..n."""
    count = len(score)
    order = np.argsort(-score, kind="stable")
    ordered, gain = score[order], outcomes.gain[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1])
    sizes = np.diff(np.append(starts, count))
    within_ties = np.repeat(np.add.reduceat(gain, starts) / sizes, sizes)
    steps = np.concatenate([[0.0], np.cumsum(within_ties)]) / count
    return np.asarray(outcomes.small.mean() + steps)


def recovered(score: Floats, outcomes: Outcomes) -> Floats:
    """PGR at all n + 1 cut points. The gap must not be zero."""
    curve = quality_curve(score, outcomes)
    return np.asarray((curve - curve[0]) / (curve[-1] - curve[0]))


def apgr(pgr: Floats) -> float:
    """The integral of PGR over the share of calls."""
    return float(np.trapezoid(pgr, dx=1 / (len(pgr) - 1)))


def cpt(pgr: Floats, share: float) -> float:
    """The least share of calls to the large model that recovers ``share`` of the gap."""
    return float(np.argmax(pgr >= share - _EPS)) / (len(pgr) - 1)


def pgr_at(pgr: Floats, calls: float) -> float:
    """PGR when the share ``calls`` goes to the large model, between two cut points by line."""
    return float(np.interp(calls, np.linspace(0, 1, len(pgr)), pgr))


RANKING: dict[str, Callable[[Floats], float]] = {
    "apgr": apgr,
    "cpt50": lambda pgr: cpt(pgr, 0.5),
    "cpt80": lambda pgr: cpt(pgr, 0.8),
    "cpt95": lambda pgr: cpt(pgr, 0.95),
    "pgr20": lambda pgr: pgr_at(pgr, 0.2),
}
"""The metrics of an order of prompts, by their names in reports."""


def ranking(score: Floats, outcomes: Outcomes) -> dict[str, float | None]:
    """All of :data:`RANKING`; None each where the gap is too small for them."""
    if gap_problem(outcomes):
        return dict.fromkeys(RANKING)
    pgr = recovered(score, outcomes)
    return {name: metric(pgr) for name, metric in RANKING.items()}


def accuracy_at(score: Floats, outcomes: Outcomes, calls: tuple[float, ...]) -> dict[str, float]:
    """Mean quality at fixed shares of calls to the large model."""
    curve = quality_curve(score, outcomes)
    shares = np.linspace(0, 1, len(curve))
    return {f"{share:g}": float(np.interp(share, shares, curve)) for share in calls}


def auc(score: Floats, positive: NDArray[np.bool_]) -> float | None:
    """P(a positive scores above a negative), ties half; None where there is only one kind."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    _, rank_of, counts = np.unique(score, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2
    total = mid_ranks[rank_of][positive].sum() - positives * (positives + 1) / 2
    return float(total / (positives * negatives))


def ece(probability: Floats, label: Floats) -> float:
    """Expected calibration error over 15 bins of equal count (Naeini et al. 2015)."""
    order = np.argsort(probability, kind="stable")
    bins = np.array_split(order, min(_ECE_BINS, len(order)))
    off = [abs(float((probability[b] - label[b]).mean())) * len(b) for b in bins]
    return sum(off) / len(order)


def bootstrap(
    score: Floats, outcomes: Outcomes, *, resamples: int, seed: int, level: float = 0.95
) -> dict[str, list[float] | None]:
    """Percentile intervals of the ranking metrics over resampled prompts.

    None each where the gap is too small. A resample whose own gap is not positive is drawn again:
    it has no curve.
    """
    if gap_problem(outcomes):
        return dict.fromkeys(RANKING)
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {name: [] for name in RANKING}
    for _ in range(resamples):
        sample, rows = _resample(outcomes, rng)
        pgr = recovered(score[rows], sample)
        for name, metric in RANKING.items():
            found[name].append(metric(pgr))
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {name: [float(q) for q in np.quantile(values, tails)] for name, values in found.items()}


def _resample(outcomes: Outcomes, rng: np.random.Generator) -> tuple[Outcomes, NDArray[np.intp]]:
    while True:
        rows = rng.integers(0, len(outcomes), len(outcomes))
        sample = outcomes.take(rows)
        if sample.gap > 0:
            return sample, rows
