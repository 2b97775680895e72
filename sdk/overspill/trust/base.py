"""What a verifier of one kind of evidence owes, and what all of them share.

To add a kind: one module with a class of this shape, one line in ``verifier.REGISTRY``, its section
in ``policy.py``. A verifier is asked about its exact type only; nothing is ever tried in turn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from overspill.errors import EvidenceRejected
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import NO_NONCE, NodeKeyConfig, report_data
from overspill.types.evidence import Assurance, Evidence

if TYPE_CHECKING:
    from overspill.trust.policy import TrustPolicy

_P = ParamSpec("_P")
_T = TypeVar("_T")
_log = logging.getLogger(__name__)

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


def warn_of(evidence_type: str) -> None:
    """Says aloud that development evidence was accepted: whoever runs this has to see it."""
    _log.warning("Development evidence accepted (%s): it proves nothing.", evidence_type)


def rejected(
    reason: str, step: str, *, expected: str, actual: str, mend: str = ""
) -> EvidenceRejected:
    """An ``EvidenceRejected`` of a sub-step of step 8."""
    return EvidenceRejected(reason, f"{STEP}.{step}", expected=expected, actual=actual, mend=mend)


def at_step(step: str, check: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Runs a check that several steps share; what it refuses is refused at ``step``."""
    try:
        return check(*args, **kwargs)
    except EvidenceRejected as error:
        raise rejected(
            error.reason, step, expected=error.expected, actual=error.actual, mend=error.mend
        ) from error


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
    stated_nonce: bytes,
    subject: Subject,
    *,
    dev: bool,
    digest: Callable[[bytes, bytes | None, bool], bytes],
    step: str,
) -> None:
    """Checks that evidence carries ``digest(NKC, nonce, dev)`` for the nonce that was sent.

    ``stated_nonce`` (32 bytes) is the one that the evidence says it was made over: binding is
    checked with it, so that a wrong nonce and a wrong configuration are told apart. Reasons:
    ``report_data_label``, ``nkc_not_bound``, ``nonce_zero``, ``nonce_mismatch``.
    """
    nkc = subject.nkc_bytes
    if actual == digest(nkc, stated_nonce, not dev):
        raise rejected(
            "report_data_label",
            step,
            expected="report data under this evidence's label",
            actual="report data under the other mode's",
        )
    if actual != digest(nkc, stated_nonce, dev):
        raise rejected(
            "nkc_not_bound",
            step,
            expected="evidence over this node key configuration",
            actual="evidence over another",
        )
    if stated_nonce != (subject.nonce or NO_NONCE):
        raise rejected(
            "nonce_mismatch" if any(stated_nonce) else "nonce_zero",
            step,
            expected=f"the challenge {(subject.nonce or NO_NONCE).hex()}",
            actual=stated_nonce.hex(),
        )


def check_report_data(actual: bytes, subject: Subject, *, step: str) -> str:
    """Checks that a hardware report's 64 bytes bind this configuration and the nonce that was sent.

    Such a report does not state its nonce, so each way to be wrong is tried by name. Reasons:
    ``report_data_label``, ``nonce_zero``, ``report_data_mismatch`` (another configuration, or
    another nonce).
    """
    nkc, nonce = subject.nkc_bytes, subject.nonce or NO_NONCE
    if actual == report_data(nkc, nonce, dev=False):
        return "report data over this configuration" + (" and nonce" if subject.nonce else "")
    reason, what = "report_data_mismatch", "another configuration or nonce"
    if actual in (report_data(nkc, nonce, dev=True), report_data(nkc, NO_NONCE, dev=True)):
        reason, what = "report_data_label", "report data under the development label"
    elif actual == report_data(nkc, NO_NONCE, dev=False):
        reason, what = "nonce_zero", "no nonce"
    raise rejected(
        reason, step, expected="report data over this configuration and nonce", actual=what
    )
