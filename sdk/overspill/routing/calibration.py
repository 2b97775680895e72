"""Stage 7's mathematics: isotonic curves, and a threshold with a guarantee.

The threshold is found by learn-then-test (Angelopoulos, Bates, Candès, Jordan, Lei, 2021): each
candidate is a hypothesis "regret exceeds epsilon", tested in a fixed order from the safest on, and
the walk ends at the first that cannot be rejected at level delta (fixed-sequence testing), so that
the chance of certifying any bad threshold is at most delta. p-values are Hoeffding-Bentkus (Bates
et al. 2021) for losses from 0 to 1, and exactly binomial where losses are 0 or 1.

Whoever checks the promise counts on a sample too, and that varies: so losses of 0 or 1 are also
tested for what will be counted on :data:`COUNTED_ON` times as many new prompts. Under a threshold
that breaks the promise there, calibration met few of the failures of both samples together: how few
is hypergeometric (Fisher's exact test). This is exact for the walk as well: the failures in the
order of their gain belong to either sample by chance, and a walk into the one that breaks the
promise has passed that test there.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any, Self

COUNTED_ON = 3
"""The promise is to hold as counted on so many times the calibration's prompts."""
_JUST_UNDER = 1e-9
"""More than the order of summing changes in a gain, less than what tells two prompts apart."""


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
    gain: Sequence[float], regret: Sequence[float], epsilon: float, delta: float
) -> Certified | None:
    """The largest certified threshold on the gain, or None where not even the least is.

    ``gain`` is each prompt's predicted gain of leaving; ``regret`` what staying costs that prompt,
    0 to 1 (a prompt that leaves costs nothing). The walk goes from the lowest gain on and ends just
    under the first prompt that may not stay.

    Raises ``ValueError`` for an epsilon or delta outside of 0 to 1, or without prompts.
    """
    if not 0 < epsilon < 1 or not 0 < delta < 1:
        raise ValueError("epsilon and delta lie between 0 and 1")
    if not gain or len(gain) != len(regret):
        raise ValueError("there is one regret for each gain, and at least one")
    total, kept, count = 0.0, 0, len(gain)
    binary = all(value in (0.0, 1.0) for value in regret)
    found: Certified | None = None
    p_value = p_value_of(0.0, count, epsilon, binary=binary)
    for threshold, costs in _by_gain(gain, regret):
        more = sum(costs)
        p_value = p_value_of(total + more, count, epsilon, binary=binary) if more else p_value
        if p_value > delta:
            break
        total, kept = total + more, kept + len(costs)
        found = Certified(threshold, total / count, p_value, kept / count, count)
    else:
        return found
    return found and replace(found, threshold=max(found.threshold, threshold - _JUST_UNDER))


def _by_gain(gain: Sequence[float], regret: Sequence[float]) -> Iterator[tuple[float, list[float]]]:
    """Each different gain, ascending, with the regrets of the prompts that have it."""
    ordered = sorted(zip(gain, regret, strict=True))
    for value, pairs in groupby(ordered, key=itemgetter(0)):
        yield value, [cost for _, cost in pairs]


def p_value_of(total: float, count: int, epsilon: float, *, binary: bool) -> float:
    """For the hypothesis that the mean loss exceeds epsilon, where ``count`` losses sum to
    ``total``: exact for losses of 0 or 1, for the expected loss and for the one counted on new
    prompts; Hoeffding-Bentkus for losses from 0 to 1."""
    mean = total / count
    if mean >= epsilon:
        return 1.0
    if binary:
        failures, new = round(total), COUNTED_ON * count
        too_many = math.floor(epsilon * new + 1e-9) + 1
        return max(
            binomial_tail(failures, count, epsilon),
            hypergeometric_tail(failures, count, new, failures + too_many),
        )
    hoeffding = math.exp(-count * _divergence(mean, epsilon))
    bentkus = math.e * binomial_tail(math.ceil(total - 1e-9), count, epsilon)
    return min(1.0, hoeffding, bentkus)


def fewest(epsilon: float, delta: float) -> int:
    """So many prompts certify something, where staying costs none of them anything."""
    least = math.ceil(math.log(delta) / math.log1p(-epsilon))
    while p_value_of(0.0, least, epsilon, binary=True) > delta:
        least += 1
    return least


def binomial_tail(successes: int, count: int, probability: float) -> float:
    """P(X <= successes) for a binomial X, summed in logarithms."""
    log_p, log_q = math.log(probability), math.log1p(-probability)
    terms = (
        math.exp(_log_choose(count, k) + k * log_p + (count - k) * log_q)
        for k in range(min(successes, count) + 1)
    )
    return min(1.0, math.fsum(terms))


def hypergeometric_tail(successes: int, drawn: int, left: int, marked: int) -> float:
    """P(X <= successes) where ``drawn`` of ``drawn + left`` balls are drawn, ``marked`` of them
    being marked, and X of the drawn ones are."""
    every = _log_choose(drawn + left, marked)
    terms = (
        math.exp(_log_choose(drawn, k) + _log_choose(left, marked - k) - every)
        for k in range(max(0, marked - left), min(successes, drawn, marked) + 1)
    )
    return min(1.0, math.fsum(terms))


def _log_choose(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


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
