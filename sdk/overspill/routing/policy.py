"""The routing policy: a frozen, versioned, hashed value, and the strict reading of its file.

A policy file is TOML; only ``version`` is required::

    version = "2026-11-21"
    floor = "any"               # device, attested or any; requests and sessions can only raise it
    threshold = 0.2             # least expected gain in P(right) that is worth leaving for
    switching_price = 0.05      # added to, or taken from, the threshold to stay where the cache is
    release = 0.5               # how slowly a hard conversation becomes an easy one, 0 to 1
    strict = false              # true: an unfitted scorer may not keep a request on the device
    listed_terms = ["Project Heron"]
    phone_regions = ["DE"]      # national telephone numbers there count too (extra: phones)
    redact = ["email"]          # kinds that may leave as placeholders, and so raise no floor

    scorer_sha256 = "9f..."     # the scorer that the threshold is for; another one is unfitted
    expires_unix = 1830000000   # afterwards the policy is strict

    [certificate]               # written by `overspill calibrate`; for people and for checks
    epsilon = 0.05

    [isotonic]                  # measured P(right) by predicted, for what a decision reports
    device = [[0.2, 0.3], [0.9, 0.8]]

    [prices]                    # what lateness, money and energy weigh against P(right)
    cost = 2.0                  # see overspill.routing.cost.Prices; the rest keep their defaults

    [monitor]                   # what judges the device's answers: routing.monitor_policy

    [detectors]                 # kind = the floor that a finding raises to; "off" turns it off
    email = "attested"
    card = "device"
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from overspill.errors import ConfigurationError
from overspill.routing.calibration import IsotonicCurve
from overspill.routing.complexity import Scorer
from overspill.routing.cost import Prices
from overspill.routing.detectors import KINDS, Wanted
from overspill.routing.monitor_policy import MonitorPolicy
from overspill.routing.phones import check_regions
from overspill.types.chat import Privacy

DEFAULT_DETECTORS: Mapping[str, Privacy] = {
    "email": Privacy.ATTESTED,
    "phone": Privacy.ATTESTED,
    "card": Privacy.DEVICE,
    "iban": Privacy.DEVICE,
    "api_key": Privacy.DEVICE,
    "listed": Privacy.DEVICE,
}


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """What decides between routes that can do it and may do it.

    ``detectors`` maps a kind to the floor that a finding raises the request to; kinds that are
    not in it are off. ``threshold`` and ``switching_price`` are differences of probabilities.
    ``certificate`` is what a calibration wrote down: it decides nothing. ``isotonic`` maps
    ``device`` and ``cloud`` to measured P(right) by predicted.
    ``scorer`` is the one that came with the file; None: the shipped one.
    ``redact`` are kinds that leave as placeholders where they leave (see ``redaction.py``): what
    is not sent raises no floor. ``phone_regions`` are ISO 3166-1 codes.
    ``prices`` are what stage 4 weighs besides quality. ``monitor`` is what stage 5 may trust; None
    leaves it to plain faults.
    ``sha256`` goes into every decision: of the file where the policy was read from one, else over
    all other fields.
    """

    version: str = "built-in-1"
    floor: Privacy = Privacy.ANY
    threshold: float = 0.2
    switching_price: float = 0.05
    release: float = 0.5
    strict: bool = False
    detectors: Mapping[str, Privacy] = field(default_factory=lambda: dict(DEFAULT_DETECTORS))
    listed_terms: tuple[str, ...] = ()
    phone_regions: tuple[str, ...] = ()
    redact: tuple[str, ...] = ()
    scorer_sha256: str = ""
    expires_unix: int = 0
    certificate: Mapping[str, float | str | bool] = field(default_factory=dict)
    isotonic: Mapping[str, IsotonicCurve] = field(default_factory=dict)
    prices: Prices = field(default_factory=Prices)
    monitor: MonitorPolicy | None = None
    scorer: Scorer | None = field(default=None, compare=False, repr=False)
    sha256: str = field(init=False, default="")
    wanted: Wanted = field(init=False, repr=False, compare=False)
    """What the detectors look for: the kinds above, and those that are to be redacted."""

    def __post_init__(self) -> None:
        _check(self)
        fields = {
            "version": self.version,
            "floor": self.floor,
            "threshold": self.threshold,
            "switching_price": self.switching_price,
            "release": self.release,
            "strict": self.strict,
            "detectors": dict(self.detectors),
            "listed_terms": self.listed_terms,
            "phone_regions": self.phone_regions,
            "redact": self.redact,
            "scorer_sha256": self.scorer_sha256,
            "expires_unix": self.expires_unix,
            "certificate": dict(self.certificate),
            "isotonic": {name: curve.to_json() for name, curve in self.isotonic.items()},
            "prices": self.prices.to_table(),
            "monitor": None if self.monitor is None else self.monitor.to_table(),
        }
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        object.__setattr__(self, "sha256", digest)
        kinds = tuple(kind for kind in KINDS if kind in self.detectors or kind in self.redact)
        wanted = Wanted(kinds, self.listed_terms, self.phone_regions)
        object.__setattr__(self, "wanted", wanted)

    def having(self, scorer: Scorer) -> Self:
        """The same policy, by the same hash, with the scorer that came beside its file."""
        policy = replace(self, scorer=scorer)
        object.__setattr__(policy, "sha256", self.sha256)
        return policy

    def is_expired(self, now_unix: int) -> bool:
        """Whether the policy has to be strict from now on."""
        return 0 < self.expires_unix <= now_unix

    def is_for(self, scorer_sha256: str) -> bool:
        """Whether the threshold is meant for that scorer."""
        return self.scorer_sha256 in ("", scorer_sha256)

    def is_for_quantization(self, quantization: str) -> bool:
        """Whether the certificate is for the device's model in that quantization, by its card; one
        that names none is for any."""
        return self.certificate.get("quantization") in (None, "", quantization)


def parse_policy(text: str, source: str = "routing policy") -> RoutingPolicy:
    """Read a policy file's text. ``source`` names it in errors.

    Raises :class:`~overspill.errors.ConfigurationError` for anything unknown, missing or out of
    range: a misspelt key must never be a looser policy.
    """
    try:
        policy = RoutingPolicy(**_fields(tomllib.loads(text)))
        digest = hashlib.sha256(text.encode()).hexdigest()
        object.__setattr__(policy, "sha256", digest)  # what a person can check with sha256sum
        return policy
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source} is not valid TOML: {error}.") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error.message}", mend=error.mend) from error


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "version": str,
    "floor": str,
    "threshold": (int, float),
    "switching_price": (int, float),
    "release": (int, float),
    "strict": bool,
    "listed_terms": list,
    "phone_regions": list,
    "redact": list,
    "detectors": dict,
    "scorer_sha256": str,
    "expires_unix": int,
    "certificate": dict,
    "isotonic": dict,
    "prices": dict,
    "monitor": dict,
}


def _fields(table: dict[str, Any]) -> dict[str, Any]:
    if "version" not in table:
        raise ConfigurationError(
            "there is no 'version'.", mend="A policy is versioned, and an empty one is an error."
        )
    for key, value in table.items():
        _check_type(key, value)
    fields = dict(table)
    if "floor" in fields:
        fields["floor"] = _floor("floor", fields["floor"])
    for key in ("listed_terms", "phone_regions", "redact"):
        if key in fields:
            fields[key] = _terms(key, fields[key])
    if "detectors" in fields:
        fields["detectors"] = _detectors(fields["detectors"])
    if "isotonic" in fields:
        fields["isotonic"] = _curves(fields["isotonic"])
    if "prices" in fields:
        fields["prices"] = Prices.from_table(fields["prices"])
    if "monitor" in fields:
        fields["monitor"] = MonitorPolicy.from_table(fields["monitor"])
    return fields


def _check_type(key: str, value: object) -> None:
    wanted = _TYPES.get(key)
    if wanted is None:
        raise ConfigurationError(f"unknown key {key!r}.", mend=f"Known: {', '.join(_TYPES)}.")
    # bool is an int to Python, and `threshold = true` is a mistake.
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ConfigurationError(f"{key!r} has the wrong type, {type(value).__name__}.")


def _floor(key: str, value: Any) -> Privacy:
    try:
        return Privacy(value)
    except ValueError:
        raise ConfigurationError(
            f"{key!r} is {value!r}.", mend=f"Use one of {', '.join(Privacy)}."
        ) from None


def _terms(key: str, values: list[object]) -> tuple[str, ...]:
    terms = tuple(value for value in values if isinstance(value, str) and value.strip())
    if len(terms) != len(values):
        raise ConfigurationError(f"{key!r} holds something that is not a word.")
    return terms


def _detectors(table: dict[str, Any]) -> dict[str, Privacy]:
    """The defaults with the file's changes: what a file does not name stays on."""
    floors = dict(DEFAULT_DETECTORS)
    for kind, value in table.items():
        if value == "off":
            floors.pop(kind, None)
        else:
            floors[kind] = _floor(f"detectors.{kind}", value)
        if kind not in KINDS:
            raise ConfigurationError(
                f"unknown detector {kind!r}.", mend=f"Known: {', '.join(KINDS)}."
            )
    return floors


def _curves(table: dict[str, Any]) -> dict[str, IsotonicCurve]:
    try:
        return {_head(name): IsotonicCurve.from_json(knots) for name, knots in table.items()}
    except ValueError as error:
        raise ConfigurationError(f"'isotonic': {error}.") from error


def _head(name: str) -> str:
    if name not in ("device", "cloud"):
        raise ValueError(f"{name!r} is neither device nor cloud")
    return name


def _check(policy: RoutingPolicy) -> None:
    ranges = (("threshold", -1.0), ("switching_price", 0.0), ("release", 0.0))
    for name, low in ranges:
        value = getattr(policy, name)
        if not low <= value <= 1.0:
            raise ConfigurationError(f"{name!r} is {value}; it must be from {low:g} to 1.")
    unknown = {*policy.detectors, *policy.redact} - set(KINDS)
    if unknown:
        raise ConfigurationError(f"unknown detector {min(unknown)!r}.")
    check_regions(policy.phone_regions)
    if not policy.version:
        raise ConfigurationError("'version' is empty.")
