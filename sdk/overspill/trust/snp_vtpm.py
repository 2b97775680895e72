"""``sev-snp-vtpm``: a quote by the virtual TPM of a SEV-SNP guest, whose report names its key.

Evidence data is ``"OVTV" | u8 version = 1 | nonce 32 | u16 + HCL report | u16 + TPMS_ATTEST |
u16 + signature``. Collateral is that of ``sev-snp``, and ``event_log`` (the firmware's).

The SNP report is checked under ``[sev-snp]``; what it binds is not the configuration but the vTPM's
key, and that key's quote binds the configuration. The registers replay, so that program and engine
library can be pinned too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from overspill.errors import EvidenceRejected
from overspill.trust import snp
from overspill.trust.base import Subject, check_binding, rejected
from overspill.trust.nkc import qualifying_data
from overspill.trust.roots import VendorRoots, vendor_roots
from overspill.trust.steps import Steps
from overspill.trust.tpm_hardware import EVENT_LOG, replay
from overspill.trust.tpm_keys import is_signed
from overspill.trust.tpm_raw import check_policy
from overspill.trust.tpm_structures import parse_quote
from overspill.trust.vtpm import MAX_BYTES, REPORT_SNP, HclReport, parse_hcl
from overspill.types.binary import ByteReader, prefixed
from overspill.types.evidence import Assurance, Evidence

if TYPE_CHECKING:
    from overspill.trust.policy import TrustPolicy

TYPE: Final = "sev-snp-vtpm"
_HEAD: Final = b"OVTV\x01"


@dataclass(frozen=True, slots=True)
class VtpmEvidence:
    """The evidence's parts: nothing is believed yet."""

    nonce: bytes
    hcl: bytes
    quote: bytes
    signature: bytes

    def encode(self) -> bytes:
        """The evidence data."""
        parts = (self.hcl, self.quote, self.signature)
        return _HEAD + self.nonce + b"".join(prefixed(2, part) for part in parts)

    @classmethod
    def decode(cls, data: bytes) -> VtpmEvidence:
        """Strict decoding. Raises ``EvidenceRejected("evidence_malformed")``."""
        reader = ByteReader(data, _malformed)
        if reader.take(len(_HEAD), "the head") != _HEAD:
            raise _malformed("a head of another kind or version")
        nonce = reader.take(32, "the nonce")
        names = ("the HCL report", "the quote", "the signature")
        hcl, quote, signature = (reader.prefixed(2, n, max_bytes=MAX_BYTES) for n in names)
        reader.end("the evidence")
        return cls(nonce, hcl, quote, signature)


class SevSnpVtpmVerifier:
    """Accepts vTPMs of guests on AMD's hardware whose measurement the policy lists."""

    evidence_type = TYPE
    dev = False
    assurance = Assurance.HARDWARE_TEE

    def __init__(self, roots: Callable[[], VendorRoots] = vendor_roots) -> None:
        self._roots = roots

    def check(self, evidence: Evidence, subject: Subject, policy: TrustPolicy) -> Mapping[str, str]:
        """See :class:`~overspill.trust.base.EvidenceVerifier`."""
        if policy.snp is None or policy.vtpm is None:
            raise rejected(
                "policy_section",
                "9",
                expected=f"sections [sev-snp] and [{TYPE}]",
                actual="not both",
            )
        # 8.1 and 8.2 Shape
        parts = VtpmEvidence.decode(evidence.data)
        hcl, quote = parse_hcl(parts.hcl), parse_quote(parts.quote)
        # 8.3 and 8.4 The guest, and its word for the vTPM's key
        guest = self._check_guest(evidence, hcl, subject.now_unix, policy)
        # 8.5 Signature
        if not is_signed(hcl.key, parts.signature, parts.quote):
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
        check_policy(policy.vtpm, log, registers)
        return {**guest, "registers": str(sorted(registers))}

    def _check_guest(
        self, evidence: Evidence, hcl: HclReport, now_unix: int, policy: TrustPolicy
    ) -> Mapping[str, str]:
        if hcl.kind != REPORT_SNP:
            raise rejected("hcl_type", "2", expected="a SEV-SNP guest", actual=str(hcl.kind))
        collateral = {k: v for k, v in evidence.collateral.items() if k != EVENT_LOG}
        materials = snp.materials_of(replace(evidence, data=hcl.report, collateral=collateral))
        return snp.examine(
            materials,
            now_unix,
            lambda report: hcl.check_bound(report.report_data),
            policy.snp,
            Steps(snp.STEP_NAMES),
            self._roots(),
        )


def _malformed(what: str) -> EvidenceRejected:
    return rejected("evidence_malformed", "2", expected="vTPM evidence", actual=what)
