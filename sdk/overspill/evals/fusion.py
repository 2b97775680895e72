"""The prompt and the small model's own confidence together.

1. Two isotonic curves of the confidence: the small model's P(right) rises with it, the gain of
   leaving falls. Alone they give the order of the confidence itself.
2. Scorers of the prompt learn what the curves leave over, as a level and as a slope in the
   confidence's rank: how much a confidence means differs from domain to domain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from overspill.evals.fit import Design, FitOptions, Task, fit
from overspill.evals.metrics import Floats
from overspill.evals.predict import Predicted, predict
from overspill.routing.calibration import IsotonicCurve
from overspill.routing.complexity import Scorer
from overspill.routing.features import Features

_TIE_BREAK = 1e-4
"""Where a curve is flat, more confidence still comes later."""


@dataclass(frozen=True, slots=True)
class Signal:
    """The confidence's curves, as fitted; ``known`` are the fit's confidences, ascending."""

    small: IsotonicCurve
    loss: IsotonicCurve
    known: Floats

    @classmethod
    def fit(cls, confidence: Floats, labels: Floats) -> Signal:
        """Curves for labels of shape (n, 2), small and large."""
        x = confidence.tolist()
        return cls(
            IsotonicCurve.fit(x, labels[:, 0].tolist()),
            IsotonicCurve.fit(x, (labels[:, 0] - labels[:, 1]).tolist()),
            np.sort(confidence),
        )

    def rank(self, confidence: Floats) -> Floats:
        """The share of the fit's confidences below each, ties half; 0 to 1."""
        below = np.searchsorted(self.known, confidence, side="left")
        up_to = np.searchsorted(self.known, confidence, side="right")
        return np.asarray((below + up_to) / 2 / len(self.known))

    def slope(self, confidence: Floats) -> Floats:
        """The rank with mean 0 and variance 1."""
        return np.asarray(np.sqrt(3) * (2 * self.rank(confidence) - 1))

    def curves(self, confidence: Floats) -> Floats:
        """Both models' P(right) by the confidence alone, shape (n, 2)."""
        small = np.array([self.small(c) for c in confidence.tolist()])
        loss = np.array([self.loss(c) for c in confidence.tolist()])
        return np.column_stack([small, small - loss - _TIE_BREAK * self.rank(confidence)])


@dataclass(frozen=True, slots=True)
class Fused:
    """What predicts from a prompt and a confidence."""

    signal: Signal
    level: Scorer
    slope: Scorer
    prior: tuple[float, float]

    def predict(self, design: Design, features: list[Features], confidence: Floats) -> Predicted:
        """Predictions for prompts with the small model's confidence in each, shape (n,)."""
        level = predict(self.level, design, features)
        slope = predict(self.slope, design, features)
        curves, signal = self.signal.curves(confidence), self.signal.slope(confidence)
        return Predicted(
            curves[:, 0] + level.small + slope.small * signal,
            curves[:, 1] + level.large + slope.large * signal,
            level.confidence,
            self.prior,
        )


def fit_fused(
    task: Task,
    confidence: Floats,
    options: FitOptions,
    *,
    seed: int = 0,
    unseen_groups: bool = False,
) -> Fused:
    """Fit the curves on the task's targets, then the scorers on what they leave over."""
    signal = Signal.fit(confidence, task.targets)
    rest = task.targets - signal.curves(confidence)
    left = Task(task.design, rest, task.groups, signal.slope(confidence))
    level, slope = fit(left, options, seed=seed, unseen_groups=unseen_groups)
    small, large = task.targets.mean(axis=0)
    return Fused(signal, level, slope, (float(small), float(large)))
