"""The domain posterior: which of the fit's groups a prompt resembles, and what those gain.

A linear classifier over the hashed n-grams, then a softmax. All its weights for one n-gram are
packed into one integer, 16 bits for each domain, so that adding up a prompt's n-grams is one
integer addition each, whatever the number of domains: in Python that is what costs.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import add, mul
from typing import Any, Self

Pair = tuple[float, float]
_LANE_BYTES = 2
_AT_ONCE = (2**16 - 1) // 255
"""So many weights of a byte fit a lane."""


@dataclass(frozen=True, slots=True)
class DomainPosterior:
    """``deviations``: how far each domain's share of right answers, for the device's model and for
    the cloud's, lies from the prior. ``bias`` is the classifier's for each domain, ``step`` what
    one unit of a packed weight is worth, ``sharpness`` what the classifier's scores are multiplied
    with before the softmax. ``packed`` has one integer for each n-gram bucket: a weight of 0 is
    the byte 128, which is the same for all domains and so changes no share.
    """

    deviations: tuple[Pair, ...]
    bias: tuple[float, ...]
    step: float
    sharpness: float
    packed: tuple[int, ...]
    _sharp_bias: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _for_device: tuple[float, ...] = field(init=False, repr=False, compare=False)
    _for_cloud: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        device, cloud = zip(*self.deviations, strict=True)
        sharp_bias = tuple(self.sharpness * bias for bias in self.bias)
        object.__setattr__(self, "_sharp_bias", sharp_bias)
        object.__setattr__(self, "_for_device", device)
        object.__setattr__(self, "_for_cloud", cloud)

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
        powers = self._powers(ngrams, weight)
        total = sum(powers)
        return tuple([power / total for power in powers])

    def deviation(self, ngrams: Collection[int], weight: float) -> Pair:
        """What the domains that a prompt may belong to add to the prior, for both models."""
        powers = self._powers(ngrams, weight)
        total = sum(powers)
        device = sum(map(mul, powers, self._for_device))
        return device / total, sum(map(mul, powers, self._for_cloud)) / total

    def _powers(self, ngrams: Collection[int], weight: float) -> list[float]:
        """What the domains' shares are in proportion to; the highest is 1."""
        factor = self.sharpness * self.step * weight
        lanes = zip(self._added(ngrams), self._sharp_bias, strict=True)
        scores = [factor * lane + bias for lane, bias in lanes]
        highest = max(scores)
        return [math.exp(score - highest) for score in scores]

    def _added(self, ngrams: Collection[int]) -> Sequence[int]:
        """For each domain the sum of its weights' bytes."""
        count = len(self.bias)
        rows = map(self.packed.__getitem__, ngrams)
        totals: Sequence[int] = (0,) * count
        for start in range(0, len(ngrams), _AT_ONCE):
            row = sum(islice(rows, _AT_ONCE)).to_bytes(_LANE_BYTES * count, "little")
            part = struct.unpack(f"<{count}H", row)
            totals = list(map(add, totals, part)) if start else part
        return totals


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
