"""Scores many prompts at once, by the same sums as ``Scorer.score`` does one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from overspill.evals.fit import Design
from overspill.evals.metrics import Floats
from overspill.routing.complexity import Scorer
from overspill.routing.features import Features


@dataclass(frozen=True, slots=True)
class Predicted:
    """For each prompt, shape (n,): both models' P(right), not clipped, and how far the features
    counted. ``prior`` is the scorer's."""

    small: Floats
    large: Floats
    confidence: Floats
    prior: tuple[float, float]

    @property
    def gain(self) -> Floats:
        """P(large right) - P(small right)."""
        return self.large - self.small

    @property
    def lift(self) -> Floats:
        """The gain without the prior: what one fit's order shares with another fit's."""
        return self.gain - (self.prior[1] - self.prior[0])


def predict(scorer: Scorer, design: Design, features: list[Features]) -> Predicted:
    """Predictions of a scorer for the pair of models that it was fitted on."""
    heads = np.array([scorer.structure.get(name, (0.0, 0.0)) for name in design.names])
    sums = design.structure @ heads + np.array(scorer.structure.get("bias", (0.0, 0.0)))
    table = np.zeros((scorer.buckets, 2))
    for bucket, weights in scorer.ngrams.items():
        table[bucket] = weights
    for row, found in zip(sums, design.ngrams, strict=True):
        row += table[found].sum(axis=0) / np.sqrt(max(len(found), 1))
    if scorer.domains is not None:
        sums += np.array([scorer.domains.deviation(one.buckets, one.weight) for one in features])
    confidence = np.array([scorer.familiarity(one) for one in features])
    found = np.array(scorer.prior) + confidence[:, None] * sums
    return Predicted(found[:, 0], found[:, 1], confidence, scorer.prior)
