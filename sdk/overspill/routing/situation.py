"""Everything but the request and the policy that a decision looks at, in one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from overspill.routing.session_memory import SessionMemory
from overspill.types.chat import Privacy
from overspill.types.evidence import Assurance
from overspill.types.route import DeviceProfile, Grant, NetworkState, Route


class Accepted(Protocol):
    """What a decision reads of the verifier's :class:`AttestationResult`: no key is among it."""

    @property
    def assurance(self) -> Assurance:
        """How strong the evidence was."""

    @property
    def accepted_until(self) -> int:
        """Unix seconds."""

    @property
    def satisfies_attested(self) -> bool:
        """Whether the floor ``attested`` is met."""


@dataclass(frozen=True, slots=True)
class AnswerLength:
    """Tokens that an answer is expected to have, from earlier ones of its kind."""

    tokens: float
    sd_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Situation:
    """The device, the way to the cloud, and what is known about both at ``now_unix``.

    ``prompt_tokens`` is the prompt's length by each route's own tokenizer; a route without one
    takes the largest there is, and an empty mapping means that nobody could count.
    ``attestation`` is the verifier's result for the cloud; None: nothing was verified, and
    nothing may be sent. ``unavailable`` says in a stable code why a route cannot be taken now
    (``model_missing``, ``evidence_rejected``, ``busy`` ...). ``pinned`` is the caller's own choice.
    ``device_loaded``: the device's model is in memory already. ``answer`` is what answers of this
    kind were like, and ``hedged_share`` how many of the latest requests went to two routes.
    """

    device: DeviceProfile = field(default_factory=DeviceProfile)
    network: NetworkState = field(default_factory=NetworkState)
    prompt_tokens: Mapping[Route, int] = field(default_factory=dict)
    attestation: Accepted | None = None
    grant: Grant | None = None
    session_floor: Privacy = Privacy.ANY
    memory: SessionMemory = field(default_factory=SessionMemory)
    unavailable: Mapping[Route, str] = field(default_factory=dict)
    pinned: Route | None = None
    device_loaded: bool = False
    now_unix: int = 0
    answer: AnswerLength | None = None
    hedged_share: float = 0.0

    def tokens_for(self, route: Route) -> int | None:
        """The prompt's tokens on a route; None where nobody could count."""
        known = self.prompt_tokens
        if not known:
            return None
        return known[route] if route in known else max(known.values())
