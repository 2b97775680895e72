"""``tpm``: a quote by a TPM of a maker that the policy names.

Evidence data is ``"OVTP" | u8 version = 1 | nonce 32 | u16 + AK (TPMT_PUBLIC) | u16 + quote
(TPMS_ATTEST) | u16 + signature (TPMT_SIGNATURE) | u16 + activation (64, or none)``. Collateral is
``event_log`` (the firmware's), and ``ek_certificate`` with ``ek_chain``, or ``ak_certificate`` with
``ak_chain`` (DER, then PEM of what stands between it and the root).

The attestation key is believed on one of two grounds: a maker's EK certificate, and the word of a
key in ``activation_keys`` that this TPM activated a credential for it; or its own certificate under
``ak_roots``. The quoted registers are those that the firmware's log leads to, extended by the
measured log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from overspill.trust.base import Subject, at_step, check_binding, rejected
from overspill.trust.certificates import Certificate, parse_certificate, read_pem
from overspill.trust.chain import Anchors, build_path
from overspill.trust.event_log import EventLog, parse_event_log
from overspill.trust.measured import PCR_OF, MeasuredLog
from overspill.trust.nkc import qualifying_data
from overspill.trust.policy_vendors import TpmPolicy
from overspill.trust.tpm import EK_USAGE, TpmEvidence, activation_message
from overspill.trust.tpm_keys import PublicArea, is_signed, parse_public
from overspill.trust.tpm_raw import check_attributes, check_bank, check_policy
from overspill.trust.tpm_structures import Quote, parse_quote
from overspill.types.evidence import Assurance, Evidence

if TYPE_CHECKING:
    from overspill.trust.policy import TrustPolicy

TYPE: Final = "tpm"
HEAD: Final = b"OVTP\x01"
EVENT_LOG: Final = "event_log"
_GROUNDS: Final = (
    frozenset({"ek_certificate", "ek_chain", EVENT_LOG}),
    frozenset({"ak_certificate", "ak_chain", EVENT_LOG}),
)
_SECURE_BOOT_PCR: Final = 7
_LAST_STATIC_PCR: Final = 15


class HardwareTpmVerifier:
    """Accepts quotes of TPMs whose maker, or whose key's certifier, the policy names."""

    evidence_type = TYPE
    dev = False
    assurance = Assurance.HARDWARE_TPM

    def check(self, evidence: Evidence, subject: Subject, policy: TrustPolicy) -> Mapping[str, str]:
        """See :class:`~overspill.trust.base.EvidenceVerifier`."""
        if policy.tpm is None:
            raise rejected("policy_section", "9", expected="a [tpm] section", actual="none")
        # 8.1 and 8.2 Shape
        _check_collateral(evidence)
        parts = TpmEvidence.decode(evidence.data, HEAD)
        quote, area = parse_quote(parts.quote), parse_public(parts.ak_public)
        # 8.3 and 8.4 The attestation key: who vouches for it, and what it is
        vouched = _check_vouched(evidence, parts, area, subject.now_unix, policy.tpm)
        check_attributes(area.attributes)
        # 8.5 Signature
        if not is_signed(area.key, parts.signature, parts.quote):
            raise rejected(
                "evidence_signature", "5", expected="a valid signature", actual="one that is not"
            )
        # 8.6 Binding
        check_binding(
            quote.qualifying_data,
            parts.nonce,
            subject,
            dev=False,
            digest=qualifying_data,
            step="6",
        )
        # 8.7 and 8.8 Registers and logs
        log, registers = replay(quote, evidence.collateral.get(EVENT_LOG, b""), subject.log)
        # 8.9 Policy
        check_policy(policy.tpm, log, registers)
        return {"tpm": vouched, "ak_name": area.name.hex(), "registers": str(sorted(registers))}


def replay(
    quote: Quote, event_log: bytes, measured: MeasuredLog
) -> tuple[EventLog, Mapping[int, bytes]]:
    """The firmware's log, and the registers that it and the measured log lead to, as quoted.

    Every quoted register has to be a static one, and the ones that the measured log extends and the
    one of secure boot have to be among them. Reasons: ``pcr_bank``, ``pcr_selection``,
    ``event_log_malformed``, ``event_log_bank``, ``log_not_replayed``.
    """
    selected = check_bank(quote)
    needed = {*PCR_OF.values(), _SECURE_BOOT_PCR}
    if not needed <= set(selected) or max(selected) > _LAST_STATIC_PCR:
        raise rejected(
            "pcr_selection",
            "7",
            expected=f"registers {sorted(needed)} at least, and none above {_LAST_STATIC_PCR}",
            actual=str(selected),
        )
    log = parse_event_log(event_log)
    registers = log.replay()
    for pcr, digest in measured.extensions():
        registers[pcr] = hashlib.sha256(registers.get(pcr, bytes(32)) + digest).digest()
    values = {pcr: registers.get(pcr, bytes(32)) for pcr in selected}
    if hashlib.sha256(b"".join(values.values())).digest() != quote.pcr_digest:
        raise rejected(
            "log_not_replayed",
            "8",
            expected="the registers that these logs lead to",
            actual="others: something else was measured",
        )
    return log, values


def _check_collateral(evidence: Evidence) -> None:
    names = set(evidence.collateral)
    if not any(names == grounds for grounds in _GROUNDS):
        raise rejected(
            "collateral_unexpected",
            "1",
            expected=" or ".join(", ".join(sorted(grounds)) for grounds in _GROUNDS),
            actual=", ".join(sorted(names)) or "none",
        )


def _check_vouched(
    evidence: Evidence, parts: TpmEvidence, area: PublicArea, now_unix: int, policy: TpmPolicy
) -> str:
    """Reasons: those of a chain; ``ak_certificate_mismatch``, ``activation_unexpected``,
    ``ek_certificate_usage``, ``ak_not_activated``."""
    if "ak_certificate" in evidence.collateral:
        path = _chain(evidence, "ak", policy.ak_roots, now_unix)
        if path[0].public_key != area.key:
            raise rejected(
                "ak_certificate_mismatch",
                "4",
                expected="this key's certificate",
                actual="another's",
            )
        if parts.activation:
            raise rejected(
                "activation_unexpected",
                "4",
                expected="no activation beside the key's own certificate",
                actual=f"{len(parts.activation)} bytes",
            )
        return f"certified by {path[-1].name}"
    path = _chain(evidence, "ek", policy.ek_roots, now_unix)
    if path[0].path_length is not None or EK_USAGE.dotted_string not in path[0].usages:
        raise rejected(
            "ek_certificate_usage", "3", expected="an EK certificate", actual="another kind"
        )
    message = activation_message(path[0].der, area.name)
    if not any(_signed(key, parts.activation, message) for key in policy.activation_keys):
        raise rejected(
            "ak_not_activated",
            "4",
            expected="the word of an activation key that this key lives beside this EK",
            actual="none that verifies",
        )
    return f"made by {path[-1].name}"


def _chain(
    evidence: Evidence, kind: str, roots: tuple[bytes, ...], now_unix: int
) -> tuple[Certificate, ...]:
    if not roots:
        raise rejected("root_unknown", "3", expected=f"a root in [tpm] {kind}_roots", actual="none")
    leaf = parse_certificate(evidence.collateral[f"{kind}_certificate"])
    between, _ = at_step("3", read_pem, evidence.collateral[f"{kind}_chain"])
    anchors = Anchors(tuple(parse_certificate(root) for root in roots), between)
    return build_path(leaf, anchors, now_unix)


def _signed(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
