"""Cheap orders of prompts that a router has to beat: each is a score, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from overspill.evals.data import Results
from overspill.evals.folds import assign_folds, near_duplicates, training_rows
from overspill.evals.metrics import Floats

_DOMAIN_PROMPTS = 8.0


@dataclass(frozen=True, slots=True)
class Case:
    """What baselines are computed from; ``train`` None: cross-fitted in ``folds``."""

    data: Results
    train: Results | None
    folds: int
    seed: int


def _random(case: Case) -> Floats:
    """Equal scores: ties are broken at random."""
    return np.zeros(len(case.data))


def _length(case: Case) -> Floats:
    return np.array([float(len(prompt)) for prompt in case.data.prompts])


def _domain_prior(case: Case) -> Floats | str:
    """Mean gain of the prompt's own group, of which others were seen. It knows the group's name,
    which no router is told."""
    data, train = case.data, case.train
    if data.groups is None:
        return "no column names a group"
    if train is not None:
        if train.groups is None:
            return "the training file has no group"
        return _group_means(train, np.arange(len(train)), data, np.arange(len(data)))
    clusters = near_duplicates(data.prompts, case.seed)
    folds = assign_folds(clusters.tolist(), case.folds, case.seed)
    score = np.zeros(len(data))
    for fold in range(int(folds.max()) + 1):
        inside = np.flatnonzero(folds == fold)
        score[inside] = _group_means(data, training_rows(folds, clusters, fold), data, inside)
    return score


def _group_means(known: Results, rows: np.ndarray, asked: Results, wanted: np.ndarray) -> Floats:
    gain = known.outcomes.gain[rows]
    overall = float(gain.mean()) if len(rows) else 0.0
    sums: dict[str, tuple[float, int]] = {}
    for row, value in zip(rows, gain, strict=True):
        name = (known.groups or ())[row]
        total, count = sums.get(name, (0.0, 0))
        sums[name] = (total + float(value), count + 1)
    means = {
        name: (total + _DOMAIN_PROMPTS * overall) / (count + _DOMAIN_PROMPTS)
        for name, (total, count) in sums.items()
    }
    return np.array([means.get((asked.groups or ())[row], overall) for row in wanted])


def _confidence(case: Case) -> Floats | str:
    if case.data.confidence is None:
        return "no column holds the small model's confidence"
    return np.asarray(-case.data.confidence)


def _oracle(case: Case) -> Floats:
    return case.data.outcomes.gain


BASELINES: dict[str, Callable[[Case], Floats | str]] = {
    "random": _random,
    "length": _length,
    "domain_prior": _domain_prior,
    "confidence": _confidence,
    "oracle": _oracle,
}
"""Scores by name: more is sent to the large model first."""


def fixed_rules(data: Results) -> dict[str, float | str]:
    """Mean quality of rules that order nothing, or why it is not known."""
    larger = data.larger
    return {
        "always_device": float(data.outcomes.small.mean()),
        "always_cloud": float(data.outcomes.large.mean()),
        "larger_device": "no column holds a larger device model's results"
        if larger is None
        else float(larger.mean()),
    }
