"""Drawing from logits: numpy over the vocabulary, and sorting only what can be drawn.

A draw takes candidates best first, so all it needs is the head of the distribution and the mass
of the rest. The head is a window below the largest logit, widened until it is enough: of 152,000
tokens a few hundred are sorted, and the result is that of sorting them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from overspill.types.chat import Sampling

if TYPE_CHECKING:
    import numpy.typing as npt

    Row: TypeAlias = npt.NDArray[np.float32]
    Ids: TypeAlias = npt.NDArray[np.intp]
    Weights: TypeAlias = npt.NDArray[np.float64]

FIRST_WINDOW = 8.0
"""Natural logs below the best; holds a few hundred tokens of a usual distribution."""
WIDENING = 4.0
WIDEST = 2048.0
"""From here on everything is in it."""

_UINT64 = (1 << 64) - 1
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_ROUNDS = 10


def uniform(seed: int, position: int, attempt: int = 0) -> float:
    """A number in [0, 1) that only the seed, the position and the attempt there decide.

    The first word of Philox4x64-10 (Salmon et al., 2011), as numpy's generator of that name gives
    it; setting up that generator takes longer than these ten rounds.
    """
    # numpy counts up before it draws.
    a, b, c, d = (position + 1) & _UINT64, attempt, 0, 0
    key, other_key = seed & _UINT64, 0
    for _ in range(_ROUNDS):
        product, other = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b, c, d = (
            (other >> 64) ^ b ^ key,
            other & _UINT64,
            (product >> 64) ^ d ^ other_key,
            product & _UINT64,
        )
        key, other_key = (key + _WEYL[0]) & _UINT64, (other_key + _WEYL[1]) & _UINT64
    return (a >> 11) * 2.0**-53


def log_normalizer(logits: Row) -> float:
    """Log of the sum over ``exp(logit - largest)``; exponentials in float32, summed in float64."""
    return math.log(_mass(logits, 1.0))


@dataclass(frozen=True, slots=True)
class Certainty:
    """What a row of logits says about how sure the model is; natural logs, entropy in nats."""

    largest: float
    normalizer: float
    margin: float
    entropy: float


MOST_MARGIN = 100.0
"""Also of a distribution with one candidate."""
_LEAST = np.float32(-1e30)


def certainty(logits: Row) -> Certainty:
    """Largest logit, log-normalizer over it, lead of the best token, and entropy.

    Exponentials and sums in float32, which numpy adds pairwise: 1e-5 is what is meant here.
    """
    best = int(logits.argmax())
    largest = float(logits[best])
    # What stands before and behind it: a tenth of the time that a partition takes.
    others = [part.max() for part in (logits[:best], logits[best + 1 :]) if part.size]
    second = float(max(others)) if others else -math.inf
    shifted = logits - logits[best]
    weights = np.exp(shifted)
    with np.errstate(invalid="ignore"):
        mass, mean = float(weights.sum()), float(np.dot(weights, shifted))
    if math.isnan(mean):  # exp(-inf) * -inf: what the model rules out adds nothing
        mean = float(np.dot(weights, np.maximum(shifted, _LEAST)))
    normalizer = math.log(mass)
    entropy = normalizer - mean / mass
    return Certainty(largest, normalizer, min(MOST_MARGIN, largest - second), max(0.0, entropy))


def top_tokens(values: npt.NDArray[np.floating], count: int) -> Ids:
    """Ids of the ``count`` largest values, best first; of equals the lower id first."""
    count = min(count, values.size)
    width = FIRST_WINDOW
    while (found := _window(values, width)).size < count:
        width *= WIDENING
    held = values[found]
    if found.size > count:
        least = np.partition(held, found.size - count)[found.size - count]
        found = found[held >= least]
    return _best_first(values, found)[:count]


def filter_candidates(logits: Row, sampling: Sampling) -> tuple[Ids, Weights]:
    """Ids and probabilities (sum 1, best first) that top-k, top-p and min-p leave; never none."""
    ids, weights = _head(logits, sampling)
    if sampling.top_p < 1.0:
        # The smallest set whose mass reaches top_p: keep a token while those before it fall short.
        before = np.cumsum(weights) - weights
        keep = max(1, int(np.count_nonzero(before < sampling.top_p)))
        ids, weights = ids[:keep], weights[:keep]
    if sampling.min_p > 0.0:
        keep = max(1, int(np.count_nonzero(weights >= sampling.min_p * weights[0])))
        ids, weights = ids[:keep], weights[:keep]
    return ids, weights / weights.sum()


def draw(logits: Row, sampling: Sampling, point: float) -> int:
    """The token at ``point``, from 0 to 1, of the candidates' probabilities, best first."""
    if sampling.top_k or sampling.top_p < 1.0 or sampling.min_p > 0.0:
        ids, weights = filter_candidates(logits, sampling)
    else:
        ids, weights = _until_mass(logits, sampling.temperature, point)
    cumulated = np.cumsum(weights)
    return int(ids[min(int(np.searchsorted(cumulated, point, "right")), ids.size - 1)])


def _head(logits: Row, sampling: Sampling) -> tuple[Ids, Weights]:
    """All that can be left by the filters, with the probabilities that they go by."""
    temperature = sampling.temperature
    if sampling.top_k:
        ids = top_tokens(logits, sampling.top_k)
        weights = _weights(logits, ids, temperature)
        return ids, weights / weights.sum()
    if sampling.top_p < 1.0:
        return _until_mass(logits, temperature, sampling.top_p)
    # What min_p leaves is a window; half a log more for what rounding does at its edge.
    width = math.inf
    if sampling.min_p > 0.0:
        width = temperature * (0.5 - math.log(sampling.min_p))
    ids = _best_first(logits, _window(logits, width))
    return ids, _weights(logits, ids, temperature)


def _until_mass(logits: Row, temperature: float, mass: float) -> tuple[Ids, Weights]:
    """The best tokens, with their probabilities, until these sum to more than ``mass``."""
    total, width = _mass(logits, temperature), FIRST_WINDOW
    while True:
        ids = _best_first(logits, _window(logits, width * temperature))
        weights = _weights(logits, ids, temperature) / total
        if ids.size == logits.size or float(weights.sum()) > mass:
            return ids, weights
        width *= WIDENING


def _window(values: npt.NDArray[np.floating], width: float) -> Ids:
    """Ids of all values at most ``width`` below the largest."""
    if width > WIDEST:
        return np.arange(values.size)
    return np.flatnonzero(values >= values.max() - width)


def _best_first(values: npt.NDArray[np.floating], ids: Ids) -> Ids:
    return ids[np.lexsort((ids, -values[ids]))]


def _weights(logits: Row, ids: Ids, temperature: float) -> Weights:
    """``exp`` of what each is below the best, which stands first."""
    best = float(logits[ids[0]])
    result: Weights = np.exp((logits[ids].astype(np.float64) - best) / temperature)
    return result


def _mass(logits: Row, temperature: float) -> float:
    shifted = logits - logits.max()
    if temperature != 1.0:
        shifted /= np.float32(temperature)
    return float(np.exp(shifted, out=shifted).sum(dtype=np.float64))
