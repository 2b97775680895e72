"""Stage 7's mathematics: isotonic curves, and a threshold with a guarantee.

The threshold is found by learn-then-test (Angelopoulos, Bates, Candès, Jordan, Lei, 2021): each
candidate is a hypothesis "regret exceeds epsilon", tested in a fixed order from the safest on, and
the walk ends at the first that cannot be rejected at level delta (fixed-sequence testing), so that
the chance of certifying any bad threshold is at most delta. p-values are Hoeffding-Bentkus (Bates
et al. 2021) for losses from 0 to 1, and exactly binomial where losses are 0 or 1.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class IsotonicCurve:
    """A non-decreasing, piecewise linear function through ``knots`` (x, y), flat outside."""

    knots: tuple[tuple[float, float], ...]

    @classmethod
    def fit(cls, x: Sequence[float], y: Sequence[float]) -> Self:
        """Least squares under monotonicity (pool adjacent violators); one knot at the centre of
        each block. Raises ``ValueError`` without points or with unequally many."""
        if not x or len(x) != len(y):
            raise ValueError("a curve needs points, with one y for each x")
        blocks: list[list[float]] = []  # sum of x, sum of y, count
        for one, value in _tied(x, y):
            blocks.append([one[0], value, one[1]])
            while len(blocks) > 1 and blocks[-2][1] * blocks[-1][2] >= (
                blocks[-1][1] * blocks[-2][2]
            ):
                last = blocks.pop()
                blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
        return cls(tuple((sx / n, sy / n) for sx, sy, n in blocks))

    def __call__(self, x: float) -> float:
        """The curve's value at x."""
        at = bisect_right(self.knots, (x, math.inf))
        if at == 0:
            return self.knots[0][1]
        if at == len(self.knots):
            return self.knots[-1][1]
        (x0, y0), (x1, y1) = self.knots[at - 1], self.knots[at]
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

    def to_json(self) -> list[list[float]]:
        """The knots, as a policy file holds them."""
        return [[x, y] for x, y in self.knots]

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read :meth:`to_json`'s value. Raises ``ValueError`` if it is no rising curve."""
        try:
            knots = tuple((float(x), float(y)) for x, y in data)
        except TypeError as error:
            raise ValueError("a curve is a list of pairs") from error
        rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(knots))
        if not knots or not rising or not all(math.isfinite(v) for knot in knots for v in knot):
            raise ValueError("a curve's knots rise in x and do not fall in y")
        return cls(knots)


def _tied(x: Sequence[float], y: Sequence[float]) -> list[tuple[tuple[float, float], float]]:
    """((sum of x, count), sum of y) for each different x, ascending."""
    sums: dict[float, list[float]] = {}
    for one, value in zip(x, y, strict=True):
        entry = sums.setdefault(one, [0.0, 0.0])
        entry[0] += value
        entry[1] += 1
    return [((one * n, n), total) for one, (total, n) in sorted(sums.items())]


@dataclass(frozen=True, slots=True)
class Certified:
    """A threshold under which the device may keep a request: those with at most this gain.

    ``regret`` is the mean regret on the ``n`` prompts of the calibration, ``p_value`` that of the
    hypothesis that the true one exceeds epsilon, ``device_share`` the share that stays.
    """

    threshold: float
    regret: float
    p_value: float
    device_share: float
    n: int


def learn_then_test(
    gain: Sequence[float],
    regret: Sequence[float],
    epsilon: float,
    delta: float,
    *,
    steps: int = 1000,
) -> Certified | None:
    """The largest certified threshold on the gain, or None where not even the least is.

    ``gain`` is each prompt's predicted gain of leaving; ``regret`` what staying costs that prompt,
    0 to 1 (a prompt that leaves costs nothing). Thresholds are tried at ``steps`` quantiles of the
    gain, from the lowest on: each keeps a larger share on the device.

    Raises ``ValueError`` for an epsilon or delta outside of 0 to 1, or without prompts.
    """
    if not 0 < epsilon < 1 or not 0 < delta < 1:
        raise ValueError("epsilon and delta lie between 0 and 1")
    if not gain or len(gain) != len(regret):
        raise ValueError("there is one regret for each gain, and at least one")
    ordered = sorted(zip(gain, regret, strict=True))
    total, kept, count = 0.0, 0, len(ordered)
    binary = all(value in (0.0, 1.0) for value in regret)
    found: Certified | None = None
    for threshold in _candidates([g for g, _ in ordered], steps):
        while kept < count and ordered[kept][0] <= threshold:
            total += ordered[kept][1]
            kept += 1
        p_value = p_value_of(total, count, epsilon, binary=binary)
        if p_value > delta:
            break
        found = Certified(threshold, total / count, p_value, kept / count, count)
    return found


def _candidates(ascending: Sequence[float], steps: int) -> list[float]:
    last = len(ascending) - 1
    return sorted({ascending[round(last * step / steps)] for step in range(1, steps + 1)})


def p_value_of(total: float, count: int, epsilon: float, *, binary: bool) -> float:
    """For the hypothesis that the mean loss exceeds epsilon, where ``count`` losses sum to
    ``total``: exact for losses of 0 or 1, Hoeffding-Bentkus for losses from 0 to 1."""
    mean = total / count
    if mean >= epsilon:
        return 1.0
    if binary:
        return binomial_tail(round(total), count, epsilon)
    hoeffding = math.exp(-count * _divergence(mean, epsilon))
    bentkus = math.e * binomial_tail(math.ceil(total - 1e-9), count, epsilon)
    return min(1.0, hoeffding, bentkus)


def binomial_tail(successes: int, count: int, probability: float) -> float:
    """P(X <= successes) for a binomial X, summed in logarithms."""
    log_p, log_q = math.log(probability), math.log1p(-probability)
    fixed = math.lgamma(count + 1)
    terms = (
        math.exp(
            fixed
            - math.lgamma(k + 1)
            - math.lgamma(count - k + 1)
            + k * log_p
            + (count - k) * log_q
        )
        for k in range(min(successes, count) + 1)
    )
    return min(1.0, math.fsum(terms))


def _divergence(a: float, b: float) -> float:
    """Kullback-Leibler divergence of a Bernoulli(a) from a Bernoulli(b), a < b."""
    first = a * math.log(a / b) if a > 0 else 0.0
    return first + (1 - a) * math.log((1 - a) / (1 - b))


@dataclass(frozen=True, slots=True)
class Drift:
    """A two-sample Kolmogorov-Smirnov test: the largest distance of the two distributions."""

    distance: float
    p_value: float

    def drifted(self, level: float = 0.01) -> bool:
        """Whether new gains certainly come from another distribution."""
        return self.p_value < level


def drift(calibrated: Sequence[float], seen: Sequence[float]) -> Drift:
    """Whether the gains seen since are like those of the calibration.

    Raises ``ValueError`` where either is empty. The p-value is the asymptotic one with Stephens'
    correction, which errs to no drift for small samples.
    """
    if not calibrated or not seen:
        raise ValueError("drift compares two samples")
    one, other = sorted(calibrated), sorted(seen)
    distance = max(
        abs(bisect_right(one, x) / len(one) - bisect_right(other, x) / len(other))
        for x in (*one, *other)
    )
    root = math.sqrt(len(one) * len(other) / (len(one) + len(other)))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # the series converges slowly there, and the value is 1 to five digits
        return Drift(distance, 1.0)
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return Drift(distance, min(1.0, max(0.0, math.fsum(terms))))
