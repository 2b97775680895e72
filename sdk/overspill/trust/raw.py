"""Raw evidence from anywhere, checked without a node around it: ``overspill trust verify``.

Context, materials and policy are three arguments here too. Without a policy the signatures and the
chains are checked, policy steps are marked as not run, and the verdict is ``authentic`` at best.
Nothing can be sealed to what comes out: only ``verifier.py`` makes an ``AttestationResult``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from overspill.errors import EvidenceRejected
from overspill.trust import nvidia, snp, tdx
from overspill.trust.base import rejected
from overspill.trust.materials import Materials, Role, recognise
from overspill.trust.policy import TrustPolicy
from overspill.trust.roots import VendorRoots, vendor_roots
from overspill.trust.snp_report import SnpReport
from overspill.trust.steps import Steps
from overspill.trust.tdx_quote import TdReport
from overspill.types.evidence import Assurance, VerificationStep

Verdict = Literal["accepted", "authentic", "rejected"]
_POLICY_STEP: Final = "8.0"


@dataclass(frozen=True, slots=True)
class RawContext:
    """When the evidence has to be good, and the nonce (1 to 64 bytes) that it has to carry."""

    now_unix: int
    nonce: bytes | None = None


@dataclass(frozen=True, slots=True)
class RawAppraisal:
    """The verdict with every step. ``assurance`` is what genuine evidence of this kind stands for,
    and NONE for what was rejected or lets others look inside."""

    kind: str
    verdict: Verdict
    assurance: Assurance
    steps: tuple[VerificationStep, ...]
    claims: Mapping[str, str]
    rejection: EvidenceRejected | None


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of raw evidence: its policy type, its steps, and its examination."""

    evidence_type: str
    step_names: Mapping[str, str]
    examine: Callable[[Materials, RawContext, TrustPolicy | None, Steps, VendorRoots], _Found]


@dataclass(frozen=True, slots=True)
class _Found:
    claims: Mapping[str, str]
    assurance: Assurance


def appraise_raw(
    kind: str,
    files: Iterable[bytes],
    context: RawContext,
    policy: TrustPolicy | None,
    roots: VendorRoots | None = None,
) -> RawAppraisal:
    """Checks the contents of ``files`` as evidence of ``kind``, one of :data:`KINDS`.

    ``roots`` are the vendors' as shipped unless a test says otherwise. Never raises
    ``EvidenceRejected``: a refusal is in the appraisal.
    """
    this = KINDS[kind]
    steps = Steps({_POLICY_STEP: "policy: accepts this type of evidence", **this.step_names})
    try:
        if policy is None:
            steps.skip(_POLICY_STEP, "no policy was given")
        else:
            steps.run(_POLICY_STEP, _check_accepted, this.evidence_type, policy)
        materials = recognise(files)
        found = this.examine(materials, context, policy, steps, roots or vendor_roots())
        if policy is not None:
            _check_assurance(found.assurance, policy)
    except EvidenceRejected as rejection:
        return RawAppraisal(kind, "rejected", Assurance.NONE, steps.with_rest(), {}, rejection)
    return RawAppraisal(
        kind,
        "authentic" if policy is None else "accepted",
        found.assurance,
        steps.with_rest(),
        MappingProxyType(dict(found.claims)),
        None,
    )


def nonce_in(report_data: bytes, nonce: bytes, *, step: str) -> str:
    """Checks that report data is the nonce, padded with zeros. Reason: ``nonce_mismatch``."""
    if nonce.ljust(len(report_data), b"\0") != report_data:
        raise rejected(
            "nonce_mismatch", step, expected=f"the nonce {nonce.hex()}", actual=report_data.hex()
        )
    return "the nonce that was given"


def _check_accepted(evidence_type: str, policy: TrustPolicy) -> str:
    if evidence_type not in policy.accept:
        raise rejected(
            "evidence_type_not_accepted",
            "0",
            expected=f"{' or '.join(sorted(policy.accept))} under {policy.source}",
            actual=evidence_type,
            mend="Name the type in the trust policy's 'accept', with its section.",
        )
    return policy.source


def _check_assurance(assurance: Assurance, policy: TrustPolicy) -> None:
    if assurance < policy.min_assurance:
        raise rejected(
            "assurance_too_low",
            "0",
            expected=f"at least {policy.min_assurance.name} under {policy.source}",
            actual=assurance.name,
        )


def _snp(
    materials: Materials,
    context: RawContext,
    policy: TrustPolicy | None,
    steps: Steps,
    roots: VendorRoots,
) -> _Found:
    nonce = context.nonce

    def bind(report: SnpReport) -> str:
        return nonce_in(report.report_data, nonce or b"", step="6")

    report = materials.one(Role.SNP_REPORT)
    claims = snp.examine(
        snp.SnpMaterials(report, materials.certificates, materials.crls),
        context.now_unix,
        bind if nonce else None,
        policy.snp if policy else None,
        steps,
        roots,
    )
    is_open = claims["debug"] == "true"
    return _Found(claims, Assurance.NONE if is_open else Assurance.HARDWARE_TEE)


def _tdx(
    materials: Materials,
    context: RawContext,
    policy: TrustPolicy | None,
    steps: Steps,
    roots: VendorRoots,
) -> _Found:
    nonce = context.nonce

    def bind(report: TdReport) -> str:
        return nonce_in(report.report_data, nonce or b"", step="9")

    def document(role: Role) -> bytes | None:
        return materials.one(role, step="6") if materials.of(role) else None

    claims = tdx.examine(
        tdx.TdxMaterials(
            materials.one(Role.TDX_QUOTE),
            document(Role.TCB_INFO),
            document(Role.QE_IDENTITY),
            materials.certificates,
            materials.crls,
        ),
        context.now_unix,
        tdx.TdxDemands(
            policy=policy.tdx if policy else None,
            bind=bind if nonce else None,
            is_strict=policy is not None,
            is_exact=False,
        ),
        steps,
        roots,
    )
    is_open = claims["debug"] == "true"
    return _Found(claims, Assurance.NONE if is_open else Assurance.HARDWARE_TEE)


def _nvidia(
    materials: Materials,
    context: RawContext,
    policy: TrustPolicy | None,
    steps: Steps,
    roots: VendorRoots,
) -> _Found:
    claims = nvidia.examine(
        nvidia.GpuMaterials(materials.one(Role.SPDM), materials.certificates, materials.crls),
        context.now_unix,
        context.nonce,
        policy.gpu if policy else None,
        steps,
        roots,
    )
    return _Found(claims, Assurance.HARDWARE_TEE)


KINDS: Final[Mapping[str, _Kind]] = MappingProxyType(
    {
        "snp": _Kind(snp.TYPE, snp.STEP_NAMES, _snp),
        "nvidia": _Kind(nvidia.TYPE, nvidia.STEP_NAMES, _nvidia),
        "tdx": _Kind(tdx.TYPE, tdx.STEP_NAMES, _tdx),
    }
)
"""What ``overspill trust verify`` knows."""
