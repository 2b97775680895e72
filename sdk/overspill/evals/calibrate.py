"""`overspill calibrate`: from results of two models to a policy with a guarantee.

1. A scorer is fitted on one part of the prompts (the training file, where there is one).
2. The threshold is certified on the other part, whose labels the scorer has not seen: without
   that the guarantee would be none. Near-duplicates stay on one side.
3. Isotonic curves turn predicted into measured P(right), for what decisions report.
4. Where the device's log of signals is given, the monitor is fitted and certified on the same two
   parts, with the scorer's word on the prompt as one of its signals. What stays under both stages
   stays under each alone: one certificate holds for both.
Regret of a prompt that stays is what the large model would have had more, and never less than 0:
a prompt that only the small model gets right does not pay for another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from overspill.errors import PolicyRefusal, UsageError
from overspill.evals.data import Results
from overspill.evals.fit import Design, FitOptions, Ints, Task, features_of, fit
from overspill.evals.fit_monitor import FittedMonitor, MonitorOptions, fit_monitor
from overspill.evals.folds import assign_folds, near_duplicates
from overspill.evals.metrics import Floats
from overspill.evals.monitor_data import Watched, load_watched
from overspill.evals.predict import Predicted, predict
from overspill.evals.scorer_file import scorer_json
from overspill.routing.calibration import (
    Certified,
    IsotonicCurve,
    drift,
    fewest,
    learn_then_test,
)
from overspill.routing.complexity import Scorer
from overspill.types.chat import Request

_FIT_FOLDS, _ALL_FOLDS = 2, 5
_QUANTILES = 100
_MAX_KNOTS = 24
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """Regret is to be at most ``epsilon`` with a chance of ``1 - delta``. ``pair`` names the two
    models' cards; a policy for ``lifetime_days`` expires then, and becomes strict.

    ``device_log`` is what `overspill eval run --route device` wrote; ``lean`` is how much over its
    threshold stage 3 then leaves to the monitor. ``quantization`` is the device model's, by its
    card; the log names it where there is one.
    """

    epsilon: float
    delta: float
    seed: int = 0
    pair: tuple[str, str] = ("small", "large")
    lifetime_days: int = 180
    device_log: Path | None = None
    lean: float = 0.0
    quantization: str = ""
    fit: FitOptions = field(default_factory=FitOptions)

    @property
    def monitor(self) -> MonitorOptions:
        """The monitor is certified at the same levels."""
        return MonitorOptions(self.epsilon, self.delta, seed=self.seed, lean=self.lean)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was certified, and all that its report shows. ``gain`` and ``judged`` are the
    calibration's part."""

    certified: Certified
    scorer: Scorer
    scorer_text: str
    scorer_sha256: str
    judged: Results
    gain: Floats
    device: IsotonicCurve
    cloud: IsotonicCurve
    fitted_on: int
    monitor: FittedMonitor | None = None
    named_quantization: str = ""

    @property
    def quantization(self) -> str:
        """What the certificate is for; empty where nobody said."""
        logged = self.monitor and self.monitor.policy and self.monitor.policy.quantization
        return logged or self.named_quantization

    @property
    def gain_quantiles(self) -> list[float]:
        """101 quantiles of the gain, for the check of drift."""
        levels = np.linspace(0, 1, _QUANTILES + 1)
        found = np.quantile(self.gain, levels, method="inverted_cdf")
        return [round(float(q), _DIGITS) for q in found]


def calibrate(data: Results, train: Results | None, options: CalibrationOptions) -> Calibration:
    """Fit, certify, and calibrate the probabilities.

    Raises :class:`~overspill.errors.PolicyRefusal` (exit 4) where no threshold can be certified,
    and :class:`~overspill.errors.UsageError` for a wrong epsilon or delta, or too few prompts.
    """
    for name, value in (("epsilon", options.epsilon), ("delta", options.delta)):
        if not 0 < value < 1:
            raise UsageError(f"--{name} is {value:g}.", mend="It lies between 0 and 1.")
    known, judged = _parts(data, train, options)
    scorer = _fitted(known, options)
    found = predict_asked(scorer, judged.asked)
    regret = np.maximum(judged.outcomes.gain, 0.0)
    certified = learn_then_test(
        found.gain.tolist(), regret.tolist(), options.epsilon, options.delta
    )
    if certified is None:
        raise _not_certifiable(judged, regret, options)
    text = scorer_json(scorer, {"fitted_on": len(known), "seed": options.seed})
    monitor = None
    if options.device_log is not None:
        lifts = _cross_fitted_lift(known, options), found.lift
        learned, tested = (
            _watched(options.device_log, part).with_prompt_lift(lift)
            for part, lift in zip((known, judged), lifts, strict=True)
        )
        monitor = fit_monitor(learned, tested, options.pair[1], options.monitor)
    return Calibration(
        certified=certified,
        scorer=scorer,
        scorer_text=text,
        scorer_sha256=hashlib.sha256(text.encode()).hexdigest(),
        judged=judged,
        gain=found.gain,
        device=_curve(found.small, judged.outcomes.small),
        cloud=_curve(found.large, judged.outcomes.large),
        fitted_on=len(known),
        monitor=monitor,
        named_quantization=options.quantization,
    )


def _watched(log: Path, part: Results) -> Watched:
    if part.ids is None:
        raise UsageError(
            "The data have no column 'id', by which the log of signals names its prompts.",
            mend="Make them by `overspill eval join`.",
        )
    return load_watched(log, part.ids, part.outcomes)


def predict_asked(scorer: Scorer, asked: Sequence[str | Request]) -> Predicted:
    """Predictions for some prompts or conversations."""
    features = features_of(asked, scorer.buckets)
    return predict(scorer, Design.of(features), features)


def drifted(
    scorer: Scorer, gain_quantiles: Sequence[float], asked: Sequence[str | Request]
) -> dict[str, Any]:
    """Whether prompts still gain as those of the calibration did.

    Each of the 101 quantiles stands for itself in a two-sample Kolmogorov-Smirnov test, which
    therefore errs to no drift.
    """
    # Rounded as the quantiles are: many prompts may gain just the same.
    seen = predict_asked(scorer, asked).gain.round(_DIGITS)
    found = drift(gain_quantiles, seen.tolist())
    return {
        "n": len(seen),
        "distance": found.distance,
        "p_value": found.p_value,
        "drifted": found.drifted(),
    }


def _parts(
    data: Results, train: Results | None, options: CalibrationOptions
) -> tuple[Results, Results]:
    """What the scorer learns from, and what the threshold is certified on."""
    if train is not None:
        clusters = near_duplicates(train.prompts + data.prompts, options.seed)
        seen = np.isin(clusters[: len(train)], clusters[len(train) :])
        known, judged = train.take(np.flatnonzero(~seen)), data
    else:
        keys = near_duplicates(data.prompts, options.seed).tolist()
        folds = assign_folds(keys, _ALL_FOLDS, options.seed)
        known = data.take(np.flatnonzero(folds < _FIT_FOLDS))
        judged = data.take(np.flatnonzero(folds >= _FIT_FOLDS))
    for part, name in ((known, "fit a scorer on"), (judged, "certify a threshold on")):
        if len(part) < 20:
            raise UsageError(f"{len(part)} prompts are too few to {name}.", mend="Use 20 or more.")
    return known, judged


def _fitted(known: Results, options: CalibrationOptions) -> Scorer:
    design = Design.of(features_of(known.asked, options.fit.buckets))
    return _fitted_by(known, design, options)


def _fitted_by(known: Results, design: Design, options: CalibrationOptions) -> Scorer:
    labels = np.column_stack([known.outcomes.small, known.outcomes.large])
    task = Task(design, labels, known.groups)
    (scorer,) = fit(task, options.fit, pair=options.pair, seed=options.seed)
    return scorer


def _cross_fitted_lift(known: Results, options: CalibrationOptions) -> Floats:
    """What scorers that had not seen a prompt say of it, shape (n,): the one that was fitted on it
    knows the answer, and the monitor would learn to trust it."""
    features = features_of(known.asked, options.fit.buckets)
    design = Design.of(features)
    keys = near_duplicates(known.prompts, options.seed).tolist()
    folds = assign_folds(keys, _ALL_FOLDS, options.seed)
    lift = np.zeros(len(known))
    for fold in range(int(folds.max()) + 1):
        inside, rows = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if len(rows):
            scorer = _fitted_by(known.take(rows), design.take(rows), options)
            found = predict(scorer, design.take(inside), [features[i] for i in inside])
            lift[inside] = found.lift
    return lift


def _curve(predicted: Floats, label: Floats) -> IsotonicCurve:
    """Measured by predicted. Neighbouring knots are thinned out: a policy is for people too."""
    curve = IsotonicCurve.fit(np.clip(predicted, 0, 1).round(4).tolist(), label.tolist())
    kept: Ints = np.unique(np.linspace(0, len(curve.knots) - 1, _MAX_KNOTS).round().astype(int))
    return IsotonicCurve(
        tuple((round(x, 5), round(y, 5)) for x, y in (curve.knots[i] for i in kept))
    )


def _not_certifiable(judged: Results, regret: Floats, options: CalibrationOptions) -> PolicyRefusal:
    least = fewest(options.epsilon, options.delta)
    few = (
        f" At least {least} prompts are needed even without any regret."
        if (len(judged) < least)
        else ""
    )
    return PolicyRefusal(
        f"No threshold can be certified for regret <= {options.epsilon:g} at delta = "
        f"{options.delta:g}: {len(judged)} prompts were left to certify on, and keeping all of "
        f"them on the device costs {float(regret.mean()):.3f}.{few}",
        mend="Give more prompts, or a larger epsilon or delta.",
    )
