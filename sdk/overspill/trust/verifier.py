"""The verifier: context, materials and policy in; one ``AttestationResult`` out, or a refusal.

Nine numbered steps, in the order of :data:`STEP_NAMES`; a refusal names its step. Nobody else
constructs an :class:`~overspill.types.evidence.AttestationResult`, and nothing can be sealed
without one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from overspill.errors import EvidenceRejected
from overspill.trust import freshness, nvidia, place, reference, release
from overspill.trust.base import EvidenceVerifier, Subject
from overspill.trust.closed import check_closed
from overspill.trust.dev import UnsafeDevVerifier
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import NodeKeyConfig
from overspill.trust.pinned import PinnedOperatorVerifier
from overspill.trust.policy import GPU, TrustPolicy
from overspill.trust.roots import vendor_roots
from overspill.trust.snp import SevSnpVerifier
from overspill.trust.snp_vtpm import SevSnpVtpmVerifier
from overspill.trust.steps import Steps
from overspill.trust.tdx import TdxVerifier
from overspill.trust.tpm import UnsafeSoftwareTpmVerifier
from overspill.trust.tpm_hardware import HardwareTpmVerifier
from overspill.types.evidence import (
    AttestationResult,
    Evidence,
    EvidenceBundle,
    VerificationStep,
)
from overspill.types.transparency import LogMemory

REGISTRY: Final[Mapping[str, EvidenceVerifier]] = MappingProxyType(
    {
        verifier.evidence_type: verifier
        for verifier in (
            PinnedOperatorVerifier(),
            UnsafeDevVerifier(),
            UnsafeSoftwareTpmVerifier(),
            SevSnpVerifier(),
            SevSnpVtpmVerifier(),
            TdxVerifier(),
            HardwareTpmVerifier(),
        )
    }
)
"""One verifier per exact type. A type that is not here is refused, never tried with another."""

STEP_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "1": "node key configuration: one strict encoding",
        "2": "evidence type: one piece, known, accepted by the policy",
        "3": "place: development evidence on loopback only",
        "4": "keys: suite, validity, age, freshness",
        "5": "measured log: what the configuration's digests stand for",
        "6": "reference values: nothing runs that is not listed",
        "7": "release: signed, logged, and what runs here",
        "8": "evidence: signature and binding",
        "9": "assurance: at least the policy's floor",
    }
)


@dataclass(frozen=True, slots=True)
class Context:
    """Who is asked, when, and what was sent: what the caller knows and the bundle does not.

    ``is_local`` is the transport's word that ``address`` is loopback or a Unix socket. ``nonce`` is
    the 32-byte challenge that this bundle has to answer. ``expected_models`` (name to SHA-256) asks
    for more than the policy does. ``memory`` is what this client knows of the policy's log; what it
    has to keep from now on is in the result's ``remember``.
    """

    now_unix: float
    address: str
    is_local: bool
    nonce: bytes | None = None
    expected_models: Mapping[str, bytes] | None = None
    memory: LogMemory | None = None


@dataclass(frozen=True, slots=True)
class Appraisal:
    """A whole verification for display: every step, and either a result or the refusal."""

    steps: tuple[VerificationStep, ...]
    result: AttestationResult | None
    rejection: EvidenceRejected | None


def verify(bundle: EvidenceBundle, context: Context, policy: TrustPolicy) -> AttestationResult:
    """The bundle's result under ``policy``. Raises ``EvidenceRejected`` and nothing else."""
    return _verify(bundle, context, policy, Steps(STEP_NAMES))


def appraise(bundle: EvidenceBundle, context: Context, policy: TrustPolicy) -> Appraisal:
    """As :func:`verify`, for people: how every step went, also when one refused."""
    steps = Steps(STEP_NAMES)
    try:
        result = _verify(bundle, context, policy, steps)
    except EvidenceRejected as rejection:
        return Appraisal(steps.with_rest(), None, rejection)
    return Appraisal(result.steps, result, None)


def _verify(
    bundle: EvidenceBundle, context: Context, policy: TrustPolicy, steps: Steps
) -> AttestationResult:
    # 1. Node key configuration
    config = steps.run("1", NodeKeyConfig.decode, bundle.node_key_config)
    # 2. Evidence type
    evidence = steps.run("2", _the_evidence, bundle, policy)
    verifier = REGISTRY[evidence.type]
    # 3. Place
    steps.run("3", place.check, config, verifier, context.address, context.is_local)
    # 4. Keys
    now = int(context.now_unix)
    steps.run("4", freshness.check, config, bundle, context.nonce, now, policy)
    # 5. Measured log
    log = steps.run("5", reference.open_log, config, bundle.measured_log)
    # 6. Reference values
    steps.run("6", _check_reference, log, policy, context.expected_models)
    # 7. Release
    released = steps.run("7", _check_release, config, bundle, log, policy, now, context.memory)
    # 8. Evidence, by the verifier of exactly this type
    subject = Subject(bundle.node_key_config, config, bundle.measured_log, log, context.nonce, now)
    claims = steps.run("8", _check_evidence, verifier, bundle, subject, policy, released)
    # 9. Assurance
    steps.run("9", _check_assurance, verifier, policy)
    return AttestationResult(
        assurance=verifier.assurance,
        evidence_type=verifier.evidence_type,
        dev=verifier.dev,
        node_key_config=bundle.node_key_config,
        nkc_sha256=hashlib.sha256(bundle.node_key_config).digest(),
        kem_id=config.kem_id,
        kdf_id=config.kdf_id,
        aead_id=config.aead_id,
        hpke_public_key=config.hpke_public_key,
        receipt_public_key=config.receipt_public_key,
        models_digest=config.models_digest,
        config_digest=config.config_digest,
        release_id=config.release_id,
        boot_id=config.boot_id,
        not_before=config.not_before,
        not_after=config.not_after,
        accepted_until=min(freshness.accepted_until(config, policy), released.not_after),
        policy_sha256=policy.sha256,
        claims=MappingProxyType({**claims, **reference.claims(log), **released.claims}),
        steps=tuple(steps.done),
        remember=released.remember,
    )


def _the_evidence(bundle: EvidenceBundle, policy: TrustPolicy) -> Evidence:
    """The machine's own piece; a GPU's may stand beside it, and has to where the policy asks."""
    machine = [piece for piece in bundle.evidence if piece.type != GPU]
    gpus = len(bundle.evidence) - len(machine)
    if len(machine) != 1 or gpus > 1:
        actual = f"{len(machine)}, and {gpus} of a GPU"
        raise _refusal("evidence_count", "2", "exactly one piece of the machine", actual)
    if (GPU in policy.accept) != bool(gpus):
        reason = "evidence_type_not_accepted" if gpus else "gpu_missing"
        wanted = "evidence of a GPU" if GPU in policy.accept else "no evidence of a GPU"
        raise _refusal(reason, "2", f"{wanted} under {policy.source}", str(gpus))
    evidence = machine[0]
    verifier = REGISTRY.get(evidence.type)
    if verifier is None:
        raise _refusal("evidence_type_unknown", "2", "a known type", repr(evidence.type[:64]))
    if verifier.dev and not policy.dev_unsafe:
        raise _refusal(
            "dev_evidence",
            "2",
            f"{policy.min_assurance.name} evidence under {policy.source}",
            f"development evidence ({evidence.type})",
            "Point to a real node; for a test on this machine, name a trust policy that says "
            "dev_unsafe = true and the node's development key.",
        )
    if evidence.type not in policy.accept:
        raise _refusal(
            "evidence_type_not_accepted",
            "2",
            f"{' or '.join(sorted(policy.accept))} under {policy.source}",
            evidence.type,
            "Name the type in the trust policy's 'accept', with its section, if that is meant.",
        )
    return evidence


def _check_reference(
    log: MeasuredLog, policy: TrustPolicy, expected_models: Mapping[str, bytes] | None
) -> str:
    """What may run, and what has to be closed around it."""
    check_closed(log, policy.closed)
    return reference.check(log, policy.reference, expected_models)


def _check_release(
    config: NodeKeyConfig,
    bundle: EvidenceBundle,
    log: MeasuredLog,
    policy: TrustPolicy,
    now_unix: int,
    memory: LogMemory | None,
) -> release.Released:
    """The release; and whether an accelerator is claimed where there is evidence of one."""
    has_gpu = any(piece.type == GPU for piece in bundle.evidence)
    if has_gpu != any(config.gpu_claims_digest):
        raise _refusal(
            "gpu_claims",
            "7",
            "a GPU's claims where there is its evidence, and nowhere else",
            "evidence without claims" if has_gpu else "claims without evidence",
        )
    if bundle.gpu_claims_digest not in ((config.gpu_claims_digest, b"") if has_gpu else (b"",)):
        raise _refusal("gpu_claims", "7", "the digest that the keys name", "another")
    return release.check(config, bundle, log, policy, now_unix, memory)


def _check_evidence(
    verifier: EvidenceVerifier,
    bundle: EvidenceBundle,
    subject: Subject,
    policy: TrustPolicy,
    released: release.Released,
) -> Mapping[str, str]:
    """The machine's evidence, by the verifier of its type, and then the GPU's."""
    evidence = next(piece for piece in bundle.evidence if piece.type == verifier.evidence_type)
    claims = verifier.check(evidence, subject, policy)
    release.check_measurements(released, evidence.type, verifier.assurance, claims)
    return {**claims, **_check_gpu(bundle, subject, policy)}


def _check_gpu(bundle: EvidenceBundle, subject: Subject, policy: TrustPolicy) -> Mapping[str, str]:
    gpus = [piece for piece in bundle.evidence if piece.type == GPU]
    if not gpus:
        return {}
    if policy.gpu is None:
        raise _refusal("policy_section", "8", f"a section [{GPU}]", "none")
    claims = nvidia.check(gpus[0], subject.config, subject.now_unix, policy.gpu, vendor_roots)
    return {f"gpu.{name}": value for name, value in claims.items()}


def _check_assurance(verifier: EvidenceVerifier, policy: TrustPolicy) -> str:
    if verifier.assurance < policy.min_assurance:
        raise _refusal(
            "assurance_too_low",
            "9",
            f"at least {policy.min_assurance.name} under {policy.source}",
            verifier.assurance.name,
        )
    return verifier.assurance.name


def _refusal(
    reason: str, step: str, expected: str, actual: str, mend: str = ""
) -> EvidenceRejected:
    return EvidenceRejected(reason, step, expected=expected, actual=actual, mend=mend)
