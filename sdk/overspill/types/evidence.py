"""Attestation in the words of RFC 9334: evidence, appraisal policy, attestation result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from overspill.types.transparency import LogMemory


class Assurance(IntEnum):
    """What stands behind a node's evidence. The verifier's word, never the node's."""

    NONE = 0
    SOFTWARE = 1
    HARDWARE_TPM = 2
    HARDWARE_TEE = 3


@dataclass(frozen=True, slots=True)
class Evidence:
    """One piece of evidence: its registered type, its bytes, and collateral by name."""

    type: str
    data: bytes
    collateral: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvidenceBundle:
    """What a node hands to everybody, the same bytes for every client.

    ``node_key_config`` is kept as exact bytes: its SHA-256 is what everything else binds to.
    """

    node_key_config: bytes
    evidence: tuple[Evidence, ...]
    release: bytes = b""
    release_proof: bytes = b""
    measured_log: tuple[bytes, ...] = ()
    gpu_claims_digest: bytes = b""
    freshness_anchor: bytes = b""


@dataclass(frozen=True, slots=True)
class VerificationStep:
    """One numbered step of a verification and how it went; ``ok`` None means not run."""

    n: str
    name: str
    ok: bool | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AttestationResult:
    """What the verifier concluded, and the only source of the key that requests are sealed to.

    Constructed by ``overspill.trust.verifier`` alone. Times are Unix seconds.
    """

    assurance: Assurance
    evidence_type: str
    dev: bool
    node_key_config: bytes
    nkc_sha256: bytes
    kem_id: int
    kdf_id: int
    aead_id: int
    hpke_public_key: bytes
    receipt_public_key: bytes
    models_digest: bytes
    config_digest: bytes
    release_id: bytes
    boot_id: bytes
    not_before: int
    not_after: int
    accepted_until: int
    policy_sha256: bytes
    claims: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[VerificationStep, ...] = ()
    remember: LogMemory | None = None
    """What to keep of the log that the release is in; None where none was demanded."""

    @property
    def satisfies_attested(self) -> bool:
        """True for hardware assurance: software and pinned evidence never satisfy the floor."""
        return self.assurance >= Assurance.HARDWARE_TPM
