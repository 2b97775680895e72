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
from typing import Any, Self

from overspill.routing.domains import DomainPosterior
from overspill.routing.features import Features
from overspill.types.card import ModelCard
from overspill.types.route import Route

STAGE = 3
_UNFITTED_CONFIDENCE = 0.5
Pair = tuple[float, float]
"""A value for the device's head and one for the cloud's."""


@dataclass(frozen=True, slots=True)
class Score:
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

    def score(self, features: Features, cards: Mapping[Route, ModelCard]) -> Score:
        """Both probabilities and the gain, for the pair of models that ``cards`` names."""
        fitted = self._is_fitted_for(cards)
        confidence = self.familiarity(features)
        if not fitted:
            confidence *= _UNFITTED_CONFIDENCE
        prior_device, prior_cloud = self.prior if fitted else self._measured_prior(features, cards)
        device, cloud = prior_device, prior_cloud
        contributions = {"prior": cloud - device}
        for name, value, (to_device, to_cloud) in self._summands(features):
            to_device = to_device * value * confidence
            to_cloud = to_cloud * value * confidence
            device += to_device
            cloud += to_cloud
            contributions[name] = to_cloud - to_device
        return Score(
            p_device_right=_clip(device),
            p_cloud_right=_clip(cloud),
            gain=sum(contributions.values()),
            contributions=contributions,
            confidence=confidence,
            fitted=fitted,
            domain=features.domain,
        )

    def _summands(self, features: Features) -> list[tuple[str, float, Pair]]:
        """Value and weights; all n-grams in one sum, since a bucket's number could be undone."""
        weights_of, found = self.structure, features.buckets
        summands = [
            (name, value, weights_of[name])
            for name, value in features.structure.items()
            if name in weights_of
        ]
        summands.append(("ngrams", features.weight, self._tables.ngrams(found)))
        if self.domains is not None and found:
            deviation = self.domains.deviation(found, features.weight)
            summands.append(("domain_posterior", 1.0, deviation))
        return summands

    def familiarity(self, features: Features) -> float:
        """How far the prompt's words, or else its n-grams, are among those that the fit has met."""
        hashes = features.words if self.vocabulary else features.buckets
        met = self._tables.met
        if not hashes:
            return 0.0
        size = len(met)
        count = sum([met[one % size] for one in hashes])
        return min(1.0, count / len(hashes) / self.familiar)

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
    """The weights and the bits of a scorer, one entry each: quicker to add up than to look up."""

    both: list[complex]
    met: bytes

    @classmethod
    def of(cls, scorer: Scorer) -> Self:
        # One addition for both heads: the device's in the real part, the cloud's in the other.
        both = [0j] * scorer.buckets
        for bucket, (to_device, to_cloud) in scorer.ngrams.items():
            both[bucket] = complex(to_device, to_cloud)
        bits = scorer.vocabulary or scorer.seen
        return cls(both, bytes(byte >> i & 1 for byte in bits for i in range(8)))

    def ngrams(self, found: Collection[int]) -> Pair:
        """What the n-grams of a prompt weigh together."""
        total = sum(map(self.both.__getitem__, found), 0j)
        return total.real, total.imag


def _clip(probability: float) -> float:
    return min(1.0, max(0.0, probability))


@cache
def shipped_scorer() -> Scorer:
    """The heads in the package, fitted on the project's own two models."""
    text = files("overspill.routing").joinpath("scorer.json").read_text(encoding="utf-8")
    return Scorer.from_json(text)
