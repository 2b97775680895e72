"""Fits the monitor: linear heads on the device model's own signals, a threshold, a certificate.

1. At each check two ridge regressions on the signals so far: P(device right), P(cloud right). Their
   ridge is the one with the least error of leaving one answer out, in closed form.
2. The threshold is certified by learn-then-test, on answers that the heads have not seen, for the
   rule as it runs: an answer leaves at the first check that says so, unless it was shown before.
3. What that wastes and keeps is measured beside judging each answer only when it is whole.
A check whose heads cannot tell right from wrong on those answers (the lower end of the AUC's
interval is under 0.6) gets no head; without any there is no monitor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from overspill.evals import metrics
from overspill.evals.metrics import Floats, Outcomes
from overspill.evals.monitor_data import ALL_CHECKS, Ints, Watched
from overspill.routing.calibration import p_value_of
from overspill.routing.monitor_policy import END, LEAST_AUC, MonitorPolicy

_RIDGES = (1.0, 10.0, 100.0, 1000.0)
_THRESHOLDS = 400
_RESAMPLES = 200
_LEAST_SPREAD = 1e-6
_DIGITS = 5
NEVER = -1
"""Tokens of an answer that stays."""


@dataclass(frozen=True, slots=True)
class MonitorOptions:
    """``epsilon`` and ``delta`` as for the policy's threshold. An answer is held back for at most
    ``hold_tokens`` tokens; one whose gain is at most ``clear_margin`` under the threshold's is
    shown at once. ``lean`` goes into the policy as it is."""

    epsilon: float
    delta: float
    hold_tokens: int = 32
    clear_margin: float = 0.4
    seed: int = 0
    lean: float = 0.0


@dataclass(frozen=True, slots=True)
class FittedMonitor:
    """``policy`` is what the policy file gets; None where nothing could be certified, for
    ``reason``. ``report`` are the figures that were measured."""

    policy: MonitorPolicy | None
    report: Mapping[str, Any]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Head:
    names: tuple[str, ...]
    weights: Floats
    bias: Floats

    def __call__(self, values: Floats) -> Floats:
        """Both P(right), shape (n, 2)."""
        return np.asarray(values @ self.weights + self.bias)

    def to_policy(self) -> dict[str, tuple[float, float]]:
        rows = {"bias": self.bias, **dict(zip(self.names, self.weights, strict=True))}
        return {name: (_round(pair[0]), _round(pair[1])) for name, pair in rows.items()}


def fit_monitor(
    known: Watched, judged: Watched, cloud: str, options: MonitorOptions
) -> FittedMonitor:
    """Fit on ``known``, certify and measure on ``judged``."""
    heads = {check: _head(known, check) for check in ALL_CHECKS}
    aucs = {
        check: interval
        for check, head in heads.items()
        if head is not None and (interval := _auc(head, judged, check, options.seed)) is not None
    }
    report: dict[str, Any] = {"n": len(judged), "fitted_on": len(known), "auc": aucs}
    used = {c: h for c, h in heads.items() if h is not None and aucs.get(c, (0, 0))[0] >= LEAST_AUC}
    if not used:
        return FittedMonitor(None, report, "no check's signals tell right from wrong")
    gains = _gains(used, judged)
    threshold = _certified(gains, judged, options)
    if threshold is None:
        return FittedMonitor(None, report, "no threshold can be certified")
    report |= _measured(gains, judged, threshold, options)
    end = aucs.get(END) or max(aucs.values())
    certificate = {
        "auc": _round(end[1]),
        "auc_low": _round(end[0]),
        **{name: report[name] for name in ("n", "regret", "device_share", "wasted_median")},
        "epsilon": options.epsilon,
        "delta": options.delta,
    }
    policy = MonitorPolicy(
        model=known.model["model"],
        quantization=known.model["quantization"],
        runtime=known.model["runtime"],
        cloud=cloud,
        sha256=known.model["model_sha256"],
        threshold=threshold,
        clear=max(-1.0, threshold - options.clear_margin),
        hold_tokens=options.hold_tokens,
        lean=options.lean,
        state_ids=known.state_ids,
        certificate={name: value for name, value in certificate.items() if value is not None},
        heads={check: head.to_policy() for check, head in used.items()},
    )
    return FittedMonitor(policy, report)


def leave_after(
    gains: Mapping[str, Floats], tokens: Ints, threshold: float, clear: float, hold_tokens: int
) -> Ints:
    """After how many tokens each answer leaves for the cloud; :data:`NEVER` where it stays.

    As :class:`~overspill.routing.monitor.Monitor` goes, but for plain faults: the first check over
    the threshold ends an answer; one at or under ``clear``, or ``hold_tokens``, shows it.
    """
    left = np.full(len(tokens), NEVER)
    open_ = np.ones(len(tokens), dtype=bool)
    for check, gain in gains.items():
        at = tokens if check == END else np.full(len(tokens), int(check))
        due = open_ & ~np.isnan(gain) & (at <= hold_tokens)
        leaves = due & (gain > threshold)
        left[leaves] = at[leaves]
        open_ &= ~leaves & ~(due & (gain <= clear))
    return left


def _head(known: Watched, check: str) -> _Head | None:
    """Ridge regressions on standardised features; None where hardly an answer is that long."""
    values = known.values[check]
    rows = ~np.isnan(values).any(axis=1)
    if rows.sum() < 40:
        return None
    x = values[rows]
    y = np.column_stack([known.outcomes.small, known.outcomes.large])[rows]
    mean, spread = x.mean(axis=0), np.maximum(x.std(axis=0), _LEAST_SPREAD)
    weights = _ridge((x - mean) / spread, y - y.mean(axis=0)) / spread[:, None]
    return _Head(known.names[check], weights, y.mean(axis=0) - mean @ weights)


def _ridge(x: Floats, y: Floats) -> Floats:
    """Weights by the ridge with the least error of leaving one row out."""
    left, values, right = np.linalg.svd(x, full_matrices=False)
    tried = []
    for ridge in _RIDGES:
        shrunk = (values**2 / (values**2 + ridge))[:, None]
        residual = y - left @ (shrunk * (left.T @ y))
        error = float(((residual / (1 - left**2 @ shrunk)) ** 2).mean())
        tried.append((error, right.T @ ((values / (values**2 + ridge))[:, None] * (left.T @ y))))
    return min(tried, key=lambda one: one[0])[1]


def _gains(heads: Mapping[str, _Head], watched: Watched) -> dict[str, Floats]:
    """The predicted gain at each check with a head, NaN where an answer had ended, shape (n,)."""
    found = {}
    for check, head in heads.items():
        right = head(watched.values[check])
        found[check] = np.asarray(right[:, 1] - right[:, 0])
    return found


def _auc(head: _Head, judged: Watched, check: str, seed: int) -> tuple[float, float, float] | None:
    """The AUC of P(device right) with its 95% interval: (low, value, high); None for one label."""
    rows = np.flatnonzero(~np.isnan(judged.values[check]).any(axis=1))
    score = head(judged.values[check][rows])[:, 0]
    right = judged.outcomes.small[rows] >= 0.5
    value = metrics.auc(score, right)
    if value is None:
        return None
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(_RESAMPLES):
        sample = rng.integers(0, len(rows), len(rows))
        found = metrics.auc(score[sample], right[sample])
        if found is not None:
            drawn.append(found)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return _round(low), _round(value), _round(high)


def _certified(
    gains: Mapping[str, Floats], judged: Watched, options: MonitorOptions
) -> float | None:
    """The largest certified threshold, walked up from where all leave that can."""
    every = np.concatenate([gain[~np.isnan(gain)] for gain in gains.values()])
    regret = np.maximum(judged.outcomes.gain, 0.0)
    binary = bool(np.isin(regret, (0.0, 1.0)).all())
    found = None
    for candidate in np.quantile(every, np.linspace(0, 1, _THRESHOLDS)):
        threshold = _round(min(1.0, max(-1.0, candidate)))
        left = _left(gains, judged, threshold, options)
        total = float(regret[left == NEVER].sum())
        if p_value_of(total, len(judged), options.epsilon, binary=binary) > options.delta:
            break
        found = threshold
    return found


def _left(
    gains: Mapping[str, Floats], judged: Watched, threshold: float, options: MonitorOptions
) -> Ints:
    clear = threshold - options.clear_margin
    return leave_after(gains, judged.tokens, threshold, clear, options.hold_tokens)


def _measured(
    gains: Mapping[str, Floats], judged: Watched, threshold: float, options: MonitorOptions
) -> dict[str, Any]:
    """What the rule costs and keeps, beside judging whole answers at the same share of calls."""
    left = _left(gains, judged, threshold, options)
    leaves, outcomes = left != NEVER, judged.outcomes
    small, share = float(outcomes.small.mean()), float(leaves.mean())
    quality = float(np.where(leaves, outcomes.large, outcomes.small).mean())
    whole = _whole_quality(gains, outcomes, share)
    at_random = small + share * outcomes.gap
    wasted = left[leaves]
    return {
        "threshold": threshold,
        "device_share": round(1 - share, 4),
        "quality": round(quality, 4),
        "q_small": round(small, 4),
        "q_large": round(float(outcomes.large.mean()), 4),
        "regret": round(float(np.maximum(outcomes.gain, 0)[~leaves].sum() / len(left)), 4),
        "wasted_median": float(np.median(wasted)) if len(wasted) else None,
        "wasted_mean": round(float(wasted.mean()), 2) if len(wasted) else None,
        "whole_answer_median": float(np.median(judged.tokens)),
        "gain_kept": None if whole is None else _quotient(quality - small, whole - small),
        "gain_kept_over_random": None
        if whole is None
        else _quotient(quality - at_random, whole - at_random),
    }


def _whole_quality(gains: Mapping[str, Floats], outcomes: Outcomes, share: float) -> float | None:
    """Mean quality where the same share leaves by the judgement of whole answers."""
    if END not in gains:
        return None
    return metrics.accuracy_at(gains[END], outcomes, (share,))[f"{share:g}"]


def _quotient(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole > 0 else None


def _round(value: float) -> float:
    return round(float(value), _DIGITS)
