"""Stage 3: how likely the device's and the cloud's model are right, and what leaving would gain.

Two linear heads over the same features, and what the domains add that the prompt may belong to:
the difference is a sum too, so each summand's contribution to the gain is exact. How far they may
move it from the prior depends on how much of the prompt looks like what the heads were fitted on.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from operator import itemgetter
from typing import Any, NamedTuple, Self

from overspill.routing.domains import DomainPosterior
from overspill.routing.features import Features
from overspill.types.card import ModelCard
from overspill.types.route import Route

STAGE = 3
_UNFITTED_CONFIDENCE = 0.5
Pair = tuple[float, float]
"""A value for the device's head and one for the cloud's."""


class Score(NamedTuple):
    """``contributions`` sum to ``gain`` (which is not clipped); the probabilities are clipped.

    ``confidence`` (0 to 1) is how far the features counted, ``fitted`` whether the heads were
    fitted on results of this very pair of models.
    """

    p_device_right: float
    p_cloud_right: float
    gain: float
    contributions: Mapping[str, float]
    confidence: float
    fitted: bool
    domain: str


@dataclass(frozen=True, slots=True)
class Scorer:
    """The fitted heads: see ``examples/routing/fit_scorer.py`` for how they are made.

    ``prior`` is the share of right answers of each model in the fit; weights are what a feature
    adds to it. ``seen`` has one bit for each n-gram bucket that the fit met. A fit on several
    groups of prompts adds ``domains``. ``vocabulary`` has bits for the words that the fit met (a
    word's CRC-32 modulo the number of bits) and takes the place of ``seen``, whose few buckets
    fill up; a prompt of whose words at least ``familiar`` are met counts in full.
    ``sha256`` is the file's, empty where there is none.
    """

    fitted_for: tuple[str, str]
    prior: Pair
    structure: Mapping[str, Pair]
    ngrams: Mapping[int, Pair]
    buckets: int
    seen: bytes
    domains: DomainPosterior | None = None
    vocabulary: bytes = b""
    familiar: float = 1.0
    sha256: str = field(default="", compare=False)
    _tables: _Tables = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tables", _Tables.of(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what the fitting script wrote. Raises ``ValueError`` or ``KeyError`` if it isn't."""
        data: dict[str, Any] = json.loads(text)
        return cls(
            fitted_for=(data["fitted_for"]["device"], data["fitted_for"]["cloud"]),
            prior=(data["prior"]["device"], data["prior"]["cloud"]),
            structure={name: (w[0], w[1]) for name, w in data["structure"].items()},
            ngrams={int(bucket): (w[0], w[1]) for bucket, w in data["ngrams"].items()},
            buckets=data["buckets"],
            seen=base64.b64decode(data["seen"]),
            domains=DomainPosterior.from_json(data["domains"]) if "domains" in data else None,
            vocabulary=base64.b64decode(data.get("vocabulary", "")),
            familiar=data.get("familiar", 1.0),
            sha256=hashlib.sha256(text.encode()).hexdigest(),
        )

    @property
    def reads_shape(self) -> bool:
        """Whether the heads weigh how a text is built, or only what it asks for."""
        return self._tables.reads_shape

    def score(self, features: Features, cards: Mapping[Route, ModelCard]) -> Score:
        """Both probabilities and the gain, for the pair of models that ``cards`` names."""
        fitted = self._is_fitted_for(cards)
        confidence = self.familiarity(features)
        if not fitted:
            confidence *= _UNFITTED_CONFIDENCE
        device, cloud = self.prior if fitted else self._measured_prior(features, cards)
        contributions = {"prior": cloud - device}
        right = complex(device, cloud)
        for name, summand in self._summands(features):
            share = summand * confidence
            right += share
            contributions[name] = share.imag - share.real
        return Score(
            p_device_right=_clip(right.real),
            p_cloud_right=_clip(right.imag),
            gain=sum(contributions.values()),
            contributions=contributions,
            confidence=confidence,
            fitted=fitted,
            domain=features.domain,
        )

    def _summands(self, features: Features) -> list[tuple[str, complex]]:
        """For both heads; all n-grams in one sum, since a bucket's number could be undone."""
        weights_of, found = self._tables.structure, features.buckets
        summands = [
            (name, weights_of[name] * value)
            for name, value in features.structure.items()
            if name in weights_of
        ]
        summands.append(("ngrams", self._tables.ngrams(found) * features.weight))
        if self.domains is not None and found:
            deviation = self.domains.deviation(found, features.weight)
            summands.append(("domain_posterior", complex(*deviation)))
        return summands

    def familiarity(self, features: Features) -> float:
        """How far the prompt's words, or else its n-grams, are among those that the fit has met."""
        hashes = features.words if self.vocabulary else features.buckets
        if not hashes:
            return 0.0
        return min(1.0, self._tables.count_met(hashes) / len(hashes) / self.familiar)

    def _is_fitted_for(self, cards: Mapping[Route, ModelCard]) -> bool:
        device, cloud = cards.get(Route.DEVICE), cards.get(Route.CLOUD)
        names = (device.name if device else "", cloud.name if cloud else "")
        return names == self.fitted_for

    def _measured_prior(self, features: Features, cards: Mapping[Route, ModelCard]) -> Pair:
        """What the cards of another pair say about themselves, where they say it."""

        def measured(route: Route, otherwise: float) -> float:
            accuracy = cards[route].skill_accuracy if route in cards else {}
            return accuracy.get(features.domain, accuracy.get("all", otherwise))

        return measured(Route.DEVICE, self.prior[0]), measured(Route.CLOUD, self.prior[1])


@dataclass(frozen=True, slots=True)
class _Tables:
    """The weights and the bits of a scorer, one entry each: quicker to add up than to look up.

    One complex number is for both heads: the device's in the real part, the cloud's in the other.
    """

    structure: Mapping[str, complex]
    both: list[complex]
    met: bytes
    met_by_bucket: bool
    reads_shape: bool

    @classmethod
    def of(cls, scorer: Scorer) -> Self:
        both = [0j] * scorer.buckets
        for bucket, pair in scorer.ngrams.items():
            both[bucket] = complex(*pair)
        bits = scorer.vocabulary or scorer.seen
        return cls(
            structure={name: complex(*pair) for name, pair in scorer.structure.items()},
            both=both,
            met=bytes(byte >> i & 1 for byte in bits for i in range(8)) + b"\0",
            met_by_bucket=not scorer.vocabulary and 8 * len(scorer.seen) >= scorer.buckets,
            reads_shape=any(name.startswith("shape.") for name in scorer.structure),
        )

    def ngrams(self, found: Collection[int]) -> complex:
        """What the n-grams of a prompt weigh together."""
        return sum(map(self.both.__getitem__, found), 0j)

    def count_met(self, hashes: Collection[int]) -> int:
        """How many of the hashes, modulo the number of bits, the fit has met."""
        met, last = self.met, len(self.met) - 1
        places = hashes if self.met_by_bucket else [one % last for one in hashes]
        # All entries at once; the last, which is zero, so that there are two at least.
        return sum(itemgetter(*places, last)(met))


def _clip(probability: float) -> float:
    return 0.0 if probability < 0.0 else 1.0 if probability > 1.0 else probability


@cache
def shipped_scorer() -> Scorer:
    """The heads in the package, fitted on the project's own two models."""
    text = files("overspill.routing").joinpath("scorer.json").read_text(encoding="utf-8")
    return Scorer.from_json(text)
