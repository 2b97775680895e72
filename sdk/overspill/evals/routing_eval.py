"""`overspill eval routing`: what a router is worth on results of two models, beside its baselines.

1. Each prompt is scored by a fit that saw neither it, its near-duplicates, nor (where there are
   groups, and no training file) its group.
2. The scores' order is judged: APGR, CPT, PGR at 20% of calls, quality at fixed shares of calls.
3. So are the probabilities (ECE, AUC), and how steady a decision is under paraphrase.
4. The baselines that embarrass stand beside it, judged in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from overspill.errors import UsageError
from overspill.evals import metrics
from overspill.evals.baselines import BASELINES, Case, fixed_rules
from overspill.evals.data import Results
from overspill.evals.fit import Design, FitOptions, Ints, Task, features_of, fit
from overspill.evals.folds import assign_folds, near_duplicates, training_rows
from overspill.evals.fusion import fit_fused
from overspill.evals.metrics import Floats, Outcomes
from overspill.evals.predict import Predicted, predict
from overspill.evals.steadiness import flips
from overspill.evals.timing import decision_us
from overspill.routing.complexity import Scorer
from overspill.routing.features import Features

CALLS = (0.1, 0.2, 0.3, 0.5, 0.7)
_TIE_BREAK = 1e-6


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """``folds`` for cross-fitting, by default ten, or five of more than 3,000 prompts;
    ``resamples`` for the bootstrap; ``timed`` prompts are decided for the decision time, and
    ``paraphrased`` ones are asked in other words."""

    folds: int | None = None
    resamples: int = 1000
    seed: int = 0
    timed: int = 500
    paraphrased: int = 300
    fit: FitOptions = field(default_factory=FitOptions)

    def folds_for(self, count: int) -> int:
        """Small sets lose most by what a fold leaves out, and cost least."""
        return self.folds or (10 if count <= 3000 else 5)


@dataclass(frozen=True, slots=True)
class Judged:
    """Scores of each prompt of ``data`` by fits that had not seen it, shape (n,) each.

    ``order`` is what prompts are sorted by; ``scorer`` a fit for what is asked of one prompt (the
    time that it takes, and paraphrases).
    """

    data: Results
    order: Floats
    p_small: Floats
    p_large: Floats
    cross_fitted: str
    labels_used: int
    scorer: Scorer


def evaluate(data: Results, train: Results | None, options: EvalOptions) -> dict[str, Any]:
    """The report, without its figures.

    Raises :class:`~overspill.errors.UsageError` where there is too little to learn from.
    """
    _check(data, train)
    judged = _trained(data, train, options) if train else _cross_fitted(data, options)
    outcomes = data.outcomes
    return {
        "n": len(data),
        "q_small": float(outcomes.small.mean()),
        "q_large": float(outcomes.large.mean()),
        "cross_fitted": judged.cross_fitted,
        "labels_used": judged.labels_used,
        "units": {"cpt": "share of calls", "pgr20": "share of the gap", "decision_us": "us"},
        "router": _router(judged, options),
        "baselines": _baselines(data, train, options),
        "groups": _by_group(judged),
        "decision_us": decision_us(judged.scorer, data.prompts, options.timed, options.seed),
    }


def _check(data: Results, train: Results | None) -> None:
    learned_from = train or data
    if len(learned_from) < 20:
        raise UsageError(
            f"{len(learned_from)} prompts are too few to fit a router on.", mend="Use 20 or more."
        )
    if train is not None and (train.confidence is None) != (data.confidence is None):
        raise UsageError("Only one of the two files has a confidence.")


@dataclass(frozen=True, slots=True)
class _Split:
    """Learn from ``rows`` of ``known``, judge the rows ``asked`` of ``data``. The features of both
    stand in one list, those of ``data`` from ``offset`` on."""

    features: list[Features]
    design: Design
    known: Results
    rows: Ints
    data: Results
    asked: Ints
    offset: int = 0

    def run(self, options: EvalOptions, *, unseen_groups: bool) -> tuple[Scorer, Predicted, Floats]:
        """A scorer of the prompt alone, predictions with all that is there, and an order that other
        fits' may be put beside."""
        if not len(self.rows):
            raise UsageError("Nothing is left to learn from: all prompts are near-duplicates.")
        known = self.known.take(self.rows)
        labels = np.column_stack([known.outcomes.small, known.outcomes.large])
        task = Task(self.design.take(self.rows), labels, known.groups)
        (scorer,) = fit(task, options.fit, seed=options.seed, unseen_groups=unseen_groups)
        rows = self.asked + self.offset
        design, features = self.design.take(rows), [self.features[i] for i in rows]
        if known.confidence is None or self.data.confidence is None:
            found = predict(scorer, design, features)
            return scorer, found, found.lift
        fused = fit_fused(
            task, known.confidence, options.fit, seed=options.seed, unseen_groups=unseen_groups
        )
        found = fused.predict(design, features, self.data.confidence[self.asked])
        own = [self.features[i] for i in self.rows]
        at_home = fused.predict(self.design.take(self.rows), own, known.confidence)
        return scorer, found, _placed(found.gain, at_home.gain)


def _placed(gain: Floats, known: Floats) -> Floats:
    """Where each gain stands among those of the fit's own prompts: the share of these that gain
    less, between two of them by line; past the ends more is still more."""
    values, counts = np.unique(known, return_counts=True)
    shares = (np.cumsum(counts) - counts / 2) / len(known)
    return np.asarray(np.interp(gain, values, shares) + _TIE_BREAK * gain)


def _cross_fitted(data: Results, options: EvalOptions) -> Judged:
    features = features_of(data.asked, options.fit.buckets)
    design = Design.of(features)
    clusters = near_duplicates(data.prompts, options.seed)
    keys = clusters.tolist() if data.groups is None else list(data.groups)
    folds = assign_folds(keys, options.folds_for(len(data)), options.seed)
    if folds.max() == 0:
        raise UsageError(
            "All prompts belong to one group: none is left to learn from.",
            mend="Give a training file, or name another column as the group.",
        )
    order, small, large = np.zeros((3, len(data)))
    for fold in range(int(folds.max()) + 1):
        inside, rows = np.flatnonzero(folds == fold), training_rows(folds, clusters, fold)
        split = _Split(features, design, data, rows, data, inside)
        scorer, found, placed = split.run(options, unseen_groups=data.groups is not None)
        order[inside], small[inside], large[inside] = placed, found.small, found.large
    way = "near-duplicate cluster" if data.groups is None else "group and near-duplicate cluster"
    used = min(int((folds != 0).sum()), options.fit.max_labels)
    return Judged(data, order, small, large, way, used, scorer)


def _trained(data: Results, train: Results, options: EvalOptions) -> Judged:
    """Fitted on the training file, less what has a near-duplicate in the data."""
    prompts = train.prompts + data.prompts
    features = features_of([*train.asked, *data.asked], options.fit.buckets)
    clusters = near_duplicates(prompts, options.seed)
    seen = np.isin(clusters[: len(train)], clusters[len(train) :])
    rows, asked = np.flatnonzero(~seen), np.arange(len(data))
    split = _Split(features, Design.of(features), train, rows, data, asked, len(train))
    scorer, found, _ = split.run(options, unseen_groups=_all_unseen(train, data))
    way = f"training file, less {int(seen.sum())} near-duplicates of the data"
    used = min(len(rows), options.fit.max_labels)
    return Judged(data, found.lift, found.small, found.large, way, used, scorer)


def _all_unseen(train: Results, data: Results) -> bool:
    """Whether the data have groups, and the training file none of them."""
    if not train.groups or not data.groups:
        return False
    return set(train.groups).isdisjoint(data.groups)


def _router(judged: Judged, options: EvalOptions) -> dict[str, Any]:
    outcomes = judged.data.outcomes
    report: dict[str, Any] = _ranked(judged.order, outcomes)
    report["ci"] = metrics.bootstrap(
        judged.order, outcomes, resamples=options.resamples, seed=options.seed
    )
    clipped = np.clip(judged.p_small, 0, 1), np.clip(judged.p_large, 0, 1)
    report["ece"] = {
        "small": metrics.ece(clipped[0], outcomes.small),
        "large": metrics.ece(clipped[1], outcomes.large),
    }
    report["auc"] = {
        "small": metrics.auc(judged.p_small, outcomes.small >= 0.5),
        "large": metrics.auc(judged.p_large, outcomes.large >= 0.5),
        "gain": metrics.auc(judged.order, outcomes.gain > 0),
    }
    report["flips"] = flips(judged.scorer, judged.data.prompts, options.paraphrased, options.seed)
    return report


def _ranked(order: Floats, outcomes: Outcomes) -> dict[str, Any]:
    report: dict[str, Any] = dict(metrics.ranking(order, outcomes))
    if problem := metrics.gap_problem(outcomes):
        report["reason"] = problem
    report["accuracy_at"] = metrics.accuracy_at(order, outcomes, CALLS)
    return report


def _baselines(data: Results, train: Results | None, options: EvalOptions) -> dict[str, Any]:
    case = Case(data, train, options.folds_for(len(data)), options.seed)
    report: dict[str, Any] = {}
    for name, score in BASELINES.items():
        found = score(case)
        if isinstance(found, str):
            report[name] = {**dict.fromkeys(metrics.RANKING), "reason": found}
        else:
            report[name] = _ranked(found, data.outcomes)
    for name, quality in fixed_rules(data).items():
        known = isinstance(quality, float)
        report[name] = {
            **dict.fromkeys(metrics.RANKING),
            "quality": quality if known else None,
            "reason": "it orders nothing: it has a quality only" if known else quality,
        }
    return report


def _by_group(judged: Judged) -> dict[str, Any]:
    """The router and the confidence within each group, where there are groups."""
    names = sorted(set(judged.data.groups or ()))
    report: dict[str, Any] = {}
    for name in names:
        rows = np.flatnonzero([group == name for group in judged.data.groups or ()])
        outcomes = judged.data.outcomes.take(rows)
        confidence = judged.data.confidence
        report[name] = {
            "n": len(rows),
            "apgr": metrics.ranking(judged.order[rows], outcomes)["apgr"],
            "apgr_confidence": None
            if confidence is None
            else metrics.ranking(-confidence[rows], outcomes)["apgr"],
        }
        if problem := metrics.gap_problem(outcomes):
            report[name]["reason"] = problem
    return report
