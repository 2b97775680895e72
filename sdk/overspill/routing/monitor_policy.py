"""The monitor's part of a policy: whose signals it may trust, how far, and its fitted heads.

In a policy file it is the section ``[monitor]``, written by whoever fitted it::

    [monitor]
    model = "brook"             # the device's model, by its card; so are the next two
    quantization = "F32"
    runtime = "llama.cpp"
    cloud = "river"             # for another cloud model stage 3's P(right) takes its head's place
    threshold = 0.2             # least gain in P(right) that is worth a cloud call
    clear = 0.0                 # at most so much to gain lets the text out before hold_tokens
    unsure = 0.5                # an answer with a smaller P(right) is marked
    hold_tokens = 32            # longest text that is held back
    lean = 0.0                  # so much over its threshold stage 3 leaves to the monitor
    state_ids = [17, 301]       # logits that are features state_0, state_1, ...

    [monitor.certificate]       # without one the heads are not used; auc is of P(device right)
    auc = 0.81
    n = 400

    [monitor.heads.0]           # after prefill; then 1, 8, 32, 128 tokens, and end
    bias = [0.6, 0.9]           # what is added to P(device right) and to P(cloud right)
    first_entropy = [-0.1, -0.02]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from overspill.errors import ConfigurationError
from overspill.types.card import ModelCard

CHECKS = (0, 1, 8, 32, 128)
"""Tokens after which the monitor looks; and once more at the end."""
END = "end"
LEAST_AUC = 0.6
"""Under this a model's signals say nothing worth acting on (a 1B model's own check has 0.48)."""
MAX_HOLD_TOKENS = 1024
Pair = tuple[float, float]
"""What a feature adds to the device's P(right), and to the cloud's."""


@dataclass(frozen=True, slots=True)
class MonitorPolicy:
    """See the module; ``heads`` maps ``"0"`` ... ``"128"`` and ``"end"`` to weights by feature.

    Raises ``ConfigurationError`` for what is out of range.
    """

    model: str
    quantization: str
    runtime: str
    cloud: str = ""
    sha256: str = ""
    threshold: float = 0.2
    clear: float = 0.0
    unsure: float = 0.5
    hold_tokens: int = 32
    lean: float = 0.0
    state_ids: tuple[int, ...] = ()
    certificate: Mapping[str, float | str | bool] = field(default_factory=dict)
    heads: Mapping[str, Mapping[str, Pair]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("threshold", "clear", "unsure", "lean"):
            value = getattr(self, name)
            if not -1.0 <= value <= 1.0:
                raise ConfigurationError(f"'monitor.{name}' is {value}; it goes from -1 to 1.")
        if self.clear > self.threshold:
            raise ConfigurationError("'monitor.clear' is above 'monitor.threshold'.")
        if not 0 <= self.hold_tokens <= MAX_HOLD_TOKENS:
            raise ConfigurationError(
                f"'monitor.hold_tokens' is {self.hold_tokens}; it goes from 0 to {MAX_HOLD_TOKENS}."
            )
        for name in self.heads:
            if name != END and name not in map(str, CHECKS):
                known = ", ".join((*map(str, CHECKS), END))
                raise ConfigurationError(f"'monitor.heads' has {name!r}.", mend=f"Known: {known}.")

    def is_certified_for(self, device: ModelCard) -> bool:
        """Whether the heads were fitted and tested on this model, quantization and runtime, and
        were found to know something."""
        if (self.model, self.quantization, self.runtime) != (
            device.name,
            device.quantization,
            device.runtime,
        ):
            return False
        if self.sha256 and device.sha256 and self.sha256 != device.sha256:
            return False
        auc = self.certificate.get("auc", 0.0)
        return bool(self.heads) and isinstance(auc, float | int) and auc >= LEAST_AUC

    @property
    def watched_tokens(self) -> int:
        """So many tokens have to come with signals: up to the last check, and one over, so that
        the end of a shorter answer counts."""
        return 1 + max((int(name) for name in self.heads if name != END), default=CHECKS[-1])

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> MonitorPolicy:
        """From the section of a file. Raises ``ConfigurationError`` for anything unknown,
        missing or of another type."""
        unknown = table.keys() - _READERS.keys()
        if unknown:
            raise ConfigurationError(
                f"unknown key 'monitor.{min(unknown)}'.", mend=f"Known: {', '.join(_READERS)}."
            )
        for name in ("model", "quantization", "runtime"):
            if name not in table:
                raise ConfigurationError(f"'monitor.{name}' is missing.")
        return cls(**{key: _READERS[key](f"monitor.{key}", value) for key, value in table.items()})

    def to_table(self) -> dict[str, Any]:
        """As the file has it; what is at its default is left out."""
        table: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, tuple):
                value = list(value)
            if value not in ("", [], {}) and value != one.default:
                table[one.name] = value
        if "heads" in table:
            table["heads"] = {
                check: {name: list(pair) for name, pair in head.items()}
                for check, head in self.heads.items()
            }
        if "certificate" in table:
            table["certificate"] = dict(self.certificate)
        return table


def _wrong(key: str, value: object) -> ConfigurationError:
    return ConfigurationError(f"{key!r} has the wrong type, {type(value).__name__}.")


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(key, value)
    return value


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(key, value)
    return float(value)


def _count(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(key, value)
    return value


def _counts(key: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _wrong(key, value)
    return tuple(_count(key, one) for one in value)


def _certificate(key: str, value: object) -> Mapping[str, float | str | bool]:
    if not isinstance(value, dict):
        raise _wrong(key, value)
    for name, one in value.items():
        if not isinstance(one, float | int | str | bool):
            raise _wrong(f"{key}.{name}", one)
    return value


def _heads(key: str, value: object) -> Mapping[str, Mapping[str, Pair]]:
    if not isinstance(value, dict):
        raise _wrong(key, value)
    return {check: _head(f"{key}.{check}", head) for check, head in value.items()}


def _head(key: str, value: object) -> Mapping[str, Pair]:
    if not isinstance(value, dict):
        raise _wrong(key, value)
    return {name: _pair(f"{key}.{name}", weights) for name, weights in value.items()}


def _pair(key: str, value: object) -> Pair:
    if not isinstance(value, list) or len(value) != 2:
        raise _wrong(key, value)
    return _number(key, value[0]), _number(key, value[1])


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    **dict.fromkeys(("model", "quantization", "runtime", "cloud", "sha256"), _text),
    **dict.fromkeys(("threshold", "clear", "unsure", "lean"), _number),
    "hold_tokens": _count,
    "state_ids": _counts,
    "certificate": _certificate,
    "heads": _heads,
}
