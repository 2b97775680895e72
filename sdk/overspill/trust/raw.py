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
from overspill.trust import nvidia, snp, tdx, tpm_raw
from overspill.trust.base import at_step, rejected
from overspill.trust.ccel import RTMRS, CcEventLog, parse_ccel
from overspill.trust.certificates import load_key
from overspill.trust.materials import Materials, Role, recognise
from overspill.trust.policy import SNP_VTPM, TPM, TrustPolicy
from overspill.trust.roots import VendorRoots, vendor_roots
from overspill.trust.snp_report import SnpReport
from overspill.trust.steps import Steps
from overspill.trust.tdx_quote import TdReport
from overspill.trust.tpm_keys import parse_public
from overspill.trust.tpm_raw import AttestationKey
from overspill.trust.vtpm import REPORT_SNP, parse_hcl
from overspill.types.evidence import Assurance, VerificationStep

Verdict = Literal["accepted", "authentic", "rejected"]
_POLICY_STEP: Final = "8.0"
_CCEL_STEP: Final = "8.13"


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

    evidence_type: Callable[[Materials], str]
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
        materials = recognise(files)
        if policy is not None:
            steps.run(_POLICY_STEP, _check_accepted, this.evidence_type(materials), policy)
        found = this.examine(materials, context, policy, steps, roots or vendor_roots())
        if policy is not None:
            _check_assurance(found.assurance, policy)
    except EvidenceRejected as rejection:
        steps.note(rejection)
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

    guests = materials.of(Role.HCL_REPORT)
    report = at_step("1", parse_hcl, guests[0]).report if guests else None
    claims = snp.examine(
        snp.SnpMaterials(
            report or materials.one(Role.SNP_REPORT), materials.certificates, materials.crls
        ),
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
    if not materials.of(Role.EVENT_LOG):
        steps.skip(_CCEL_STEP, "no event log was given")
    else:
        log = materials.one(Role.EVENT_LOG, step="13")
        claims = {**claims, **_ccel_claims(steps.run(_CCEL_STEP, _replayed, log, claims))}
    is_open = claims["debug"] == "true"
    return _Found(claims, Assurance.NONE if is_open else Assurance.HARDWARE_TEE)


def _replayed(data: bytes, claims: Mapping[str, str]) -> CcEventLog:
    """The firmware's log, once it leads to the quoted registers. RTMR3 is the running system's,
    which goes on where the firmware's log ends. Reasons: those of the log, ``log_not_replayed``."""
    log = at_step("13", parse_ccel, data)
    registers = at_step("13", log.replay)
    for index in range(RTMRS - 1):
        leads_to = registers.get(index, bytes(48)).hex()
        if leads_to != claims[f"rtmr{index}"]:
            raise rejected(
                "log_not_replayed",
                "13",
                expected=f"RTMR{index} {claims[f'rtmr{index}']}, as quoted",
                actual=leads_to,
            )
    return log


def _ccel_claims(log: CcEventLog) -> dict[str, str]:
    said = {True: "on", False: "off", None: "not measured"}
    return {"event_log": "replays into RTMR0 to RTMR2", "secure_boot": said[log.secure_boot]}


def _nvidia(
    materials: Materials,
    context: RawContext,
    policy: TrustPolicy | None,
    steps: Steps,
    roots: VendorRoots,
) -> _Found:
    claims = nvidia.examine(
        nvidia.GpuMaterials(
            materials.one(Role.SPDM),
            materials.certificates,
            materials.crls,
            materials.of(Role.RIM),
        ),
        context.now_unix,
        context.nonce,
        policy.gpu if policy else None,
        steps,
        roots,
    )
    return _Found(claims, Assurance.HARDWARE_TEE)


def _tpm(
    materials: Materials,
    context: RawContext,
    policy: TrustPolicy | None,
    steps: Steps,
    roots: VendorRoots,
) -> _Found:
    guest = _vtpm_key(materials, context, policy, roots)
    values = materials.one(Role.PCRS, step="7") if materials.of(Role.PCRS) else None
    found = tpm_raw.examine(
        tpm_raw.TpmMaterials(
            quote=materials.one(Role.TPM_QUOTE),
            signature=materials.one(Role.TPM_SIGNATURE),
            keys=(guest,) if guest else tuple(_loose_keys(materials)),
            certificates=materials.certificates,
            pcrs=None if values is None else _split(values),
            log=materials.one(Role.EVENT_LOG) if materials.of(Role.EVENT_LOG) else None,
        ),
        context.now_unix,
        context.nonce,
        (policy.vtpm if guest else policy.tpm) if policy else None,
        steps,
    )
    return _Found(found.claims, found.assurance)


def _tpm_type(materials: Materials) -> str:
    return SNP_VTPM if materials.of(Role.HCL_REPORT) else TPM


def _vtpm_key(
    materials: Materials, context: RawContext, policy: TrustPolicy | None, roots: VendorRoots
) -> AttestationKey | None:
    """The key of a guest's own TPM, vouched for by the guest's hardware report."""
    if not materials.of(Role.HCL_REPORT):
        return None
    hcl = parse_hcl(materials.one(Role.HCL_REPORT))

    def vouch() -> str:
        if hcl.kind == REPORT_SNP:
            snp.examine(
                snp.SnpMaterials(hcl.report, materials.certificates, materials.crls),
                context.now_unix,
                lambda report: hcl.check_bound(report.report_data),
                policy.snp if policy else None,
                Steps(snp.STEP_NAMES),
                roots,
            )
            return "a SEV-SNP report names it"
        tdx.examine(
            tdx.TdxMaterials(
                materials.one(Role.TDX_QUOTE),
                certificates=materials.certificates,
                crls=materials.crls,
            ),
            context.now_unix,
            tdx.TdxDemands(
                bind=lambda report: hcl.check_bound(report.report_data),
                is_strict=False,
                is_exact=False,
            ),
            Steps(tdx.STEP_NAMES),
            roots,
        )
        return "a TDX quote names it"

    return AttestationKey(hcl.key, "the guest's runtime data", vouch=vouch)


def _loose_keys(materials: Materials) -> Iterable[AttestationKey]:
    """Every key that came along as a TPM public area, a certificate or by itself."""
    for data in materials.of(Role.TPM_PUBLIC):
        area = parse_public(data)
        yield AttestationKey(area.key, "a TPM public area", attributes=area.attributes)
    for certificate in materials.certificates:
        if certificate.path_length is None:
            yield AttestationKey(
                certificate.public_key,
                f"certificate '{certificate.name}'",
                certificate=certificate,
            )
    for spki in materials.of(Role.PUBLIC_KEY):
        yield AttestationKey(load_key(spki), "a bare public key")


def _split(pcrs: bytes) -> tuple[bytes, ...]:
    return tuple(pcrs[at : at + 32] for at in range(0, len(pcrs), 32))


KINDS: Final[Mapping[str, _Kind]] = MappingProxyType(
    {
        "snp": _Kind(lambda _: snp.TYPE, snp.STEP_NAMES, _snp),
        "nvidia": _Kind(lambda _: nvidia.TYPE, nvidia.STEP_NAMES, _nvidia),
        "tpm": _Kind(_tpm_type, tpm_raw.STEP_NAMES, _tpm),
        "tdx": _Kind(
            lambda _: tdx.TYPE,
            {**tdx.STEP_NAMES, _CCEL_STEP: "event log (CCEL): replays into RTMR0 to RTMR2"},
            _tdx,
        ),
    }
)
"""What ``overspill trust verify`` knows."""
