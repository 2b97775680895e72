"""What a verifier of one kind of evidence owes, and what all of them share.

To add a kind: one module with a class of this shape, one line in ``verifier.REGISTRY``, its section
in ``policy.py``. A verifier is asked about its exact type only; nothing is ever tried in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from overspill.errors import EvidenceRejected
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import NodeKeyConfig
from overspill.types.evidence import Assurance, Evidence

if TYPE_CHECKING:
    from overspill.trust.policy import TrustPolicy

STEP = "8"
"""The step of the verification in which evidence is checked; verifiers number theirs 8.1, 8.2..."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What evidence has to be about: already decoded, not yet believed."""

    nkc_bytes: bytes
    config: NodeKeyConfig
    raw_log: tuple[bytes, ...]
    log: MeasuredLog
    nonce: bytes | None
    now_unix: int


class EvidenceVerifier(Protocol):
    """Checks one kind of evidence.

    ``dev`` says that the kind is for development only; ``assurance`` is the most that it can ever
    stand for, whatever the evidence says of itself.
    """

    @property
    def evidence_type(self) -> str:
        """The registered name, exactly as bundles and policies spell it."""

    @property
    def dev(self) -> bool:
        """True when the kind must never count outside loopback."""

    @property
    def assurance(self) -> Assurance:
        """What evidence of this kind stands for."""

    def check(self, evidence: Evidence, subject: Subject, policy: TrustPolicy) -> Mapping[str, str]:
        """Returns claims for display, or raises ``EvidenceRejected``. No clock, no network."""


def rejected(
    reason: str, step: str, *, expected: str, actual: str, mend: str = ""
) -> EvidenceRejected:
    """An ``EvidenceRejected`` of a sub-step of step 8."""
    return EvidenceRejected(reason, f"{STEP}.{step}", expected=expected, actual=actual, mend=mend)


def refuse_collateral(evidence: Evidence, allowed: frozenset[str] = frozenset()) -> None:
    """Raises unless the evidence brings exactly the collateral that its kind defines."""
    if set(evidence.collateral) != allowed:
        raise rejected(
            "collateral_unexpected",
            "1",
            expected=", ".join(sorted(allowed)) or "no collateral",
            actual=", ".join(sorted(evidence.collateral)) or "none",
        )


def check_binding(
    actual: bytes,
    subject: Subject,
    *,
    dev: bool,
    digest: Callable[[bytes, bytes | None, bool], bytes],
    step: str,
) -> None:
    """Checks that evidence carries ``digest(NKC, nonce, dev)``, or says what it carries instead.

    Reasons: ``report_data_label`` (the other mode's label), ``nonce_zero`` (made without the nonce
    that was sent), ``nonce_mismatch`` (another nonce, or another NKC), ``nkc_not_bound``.
    """
    nkc, nonce = subject.nkc_bytes, subject.nonce
    if actual == digest(nkc, nonce, dev):
        return
    if actual in (digest(nkc, nonce, not dev), digest(nkc, None, not dev)):
        reason, found = "report_data_label", "that of the other mode's label"
    elif nonce is not None and actual == digest(nkc, None, dev):
        reason, found = "nonce_zero", "that of evidence made for no nonce"
    elif nonce is not None:
        reason, found = "nonce_mismatch", "that of another nonce or configuration"
    else:
        reason, found = "nkc_not_bound", "that of another configuration"
    raise rejected(
        reason, step, expected="the digest of this configuration and nonce", actual=found
    )
