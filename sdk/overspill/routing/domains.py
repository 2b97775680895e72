"""The domain posterior: which of the fit's groups a prompt resembles, and what those gain.

A linear classifier over the hashed n-grams, then a softmax. All its weights for one n-gram are
packed into one integer, 32 bits for each domain, so that adding up a prompt's n-grams is one
integer addition each, whatever the number of domains: in Python that is what costs.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import mul
from typing import Any, Self

Pair = tuple[float, float]
_LANE_BYTES = 4
_ZERO = 128
"""The byte that stands for a weight of 0; the least byte, 1, stands for -127 steps."""


@dataclass(frozen=True, slots=True)
class DomainPosterior:
    """``deviations``: how far each domain's share of right answers, for the device's model and for
    the cloud's, lies from the prior. ``bias`` is the classifier's for each domain, ``step`` what
    one unit of a packed weight is worth, ``sharpness`` what the classifier's scores are multiplied
    with before the softmax. ``packed`` has one integer for each n-gram bucket.
    """

    deviations: tuple[Pair, ...]
    bias: tuple[float, ...]
    step: float
    sharpness: float
    packed: tuple[int, ...]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the part ``domains`` of a scorer file. Raises ``ValueError`` or ``KeyError``."""
        deviations = tuple((d[0], d[1]) for d in data["deviations"])
        return cls(
            deviations=deviations,
            bias=tuple(data["bias"]),
            step=data["step"],
            sharpness=data["sharpness"],
            packed=pack(base64.b64decode(data["weights"]), len(deviations)),
        )

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        return {
            "deviations": [list(pair) for pair in self.deviations],
            "bias": list(self.bias),
            "step": self.step,
            "sharpness": self.sharpness,
            "weights": base64.b64encode(unpack(self.packed, len(self.deviations))).decode(),
        }

    def posterior(self, ngrams: Collection[int], weight: float) -> tuple[float, ...]:
        """P(domain) for each domain; ``ngrams`` are buckets with one common weight."""
        total = sum(map(self.packed.__getitem__, ngrams))
        count = len(self.deviations)
        lanes = struct.unpack(f"<{count}I", total.to_bytes(_LANE_BYTES * count, "little"))
        zero, factor = _ZERO * len(ngrams), self.step * weight
        return _softmax(
            [
                self.sharpness * (factor * (lane - zero) + bias)
                for lane, bias in zip(lanes, self.bias, strict=True)
            ]
        )

    def deviation(self, ngrams: Collection[int], weight: float) -> Pair:
        """What the domains that a prompt may belong to add to the prior, for both models."""
        shares = self.posterior(ngrams, weight)
        device, cloud = zip(*self.deviations, strict=True)
        return math.fsum(map(mul, shares, device)), math.fsum(map(mul, shares, cloud))


def pack(weights: bytes, domains: int) -> tuple[int, ...]:
    """One integer for each row of ``domains`` bytes. Raises ``ValueError`` for an uneven table."""
    if not domains or len(weights) % domains:
        raise ValueError("the domains' weights are no table")
    packed = []
    for start in range(0, len(weights), domains):
        lanes = bytearray(_LANE_BYTES * domains)
        lanes[::_LANE_BYTES] = weights[start : start + domains]
        packed.append(int.from_bytes(lanes, "little"))
    return tuple(packed)


def unpack(packed: tuple[int, ...], domains: int) -> bytes:
    """The table of bytes that :func:`pack` was given."""
    width = _LANE_BYTES * domains
    return b"".join(row.to_bytes(width, "little")[::_LANE_BYTES] for row in packed)


def _softmax(scores: list[float]) -> tuple[float, ...]:
    highest = max(scores)
    powers = [math.exp(score - highest) for score in scores]
    total = sum(powers)
    return tuple([power / total for power in powers])
