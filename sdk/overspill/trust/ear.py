"""An appraisal in the shape of an EAT Attestation Result (draft-ietf-rats-ear), unsigned.

For those who already read such results; it carries what was found and gives no key. The
trustworthiness vector is that of AR4SI (draft-ietf-rats-ar4si): 2 to 31 affirm, 32 to 95 warn, 96
to 127 contraindicate, 0 claims nothing. Only what a step checked is claimed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from overspill.errors import EvidenceRejected
from overspill.types.evidence import Assurance, VerificationStep

PROFILE: Final = "tag:github.com,2023:veraison/ear"
NO_CLAIM: Final = 0
AFFIRMED: Final = 2
UNSAFE_CONFIGURATION: Final = 36
CONTRAINDICATED: Final = 96
CRYPTO_FAILED: Final = 99

_CRYPTO_REASONS: Final = ("signature", "root_unknown", "not_bound", "certificate", "mismatch")
_CLAIMS: Final = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)


def ear(
    name: str,
    *,
    verdict: str,
    assurance: Assurance,
    claims: Mapping[str, str],
    steps: Iterable[VerificationStep],
    rejection: EvidenceRejected | None,
    policy: str | None,
    now_unix: int,
    version: str,
) -> dict[str, Any]:
    """The result as JSON-able values, one submodule ``name``.

    ``policy`` names the appraisal policy; without one the status is ``none``, however good the
    signatures are: nothing was appraised.
    """
    vector = _vector(assurance, claims, rejection, is_appraised=policy is not None)
    submodule: dict[str, Any] = {
        "ear.status": _status(verdict, vector),
        "ear.trustworthiness-vector": vector,
        "ear.veraison.annotated-evidence": dict(claims),
        "overspill.assurance": assurance.name,
        "overspill.steps": {step.n: step.ok for step in steps},
    }
    if policy is not None:
        submodule["ear.appraisal-policy-id"] = policy
    if rejection is not None:
        submodule["overspill.rejection"] = {
            "code": rejection.reason,
            "step": rejection.step,
            "expected": rejection.expected,
            "actual": rejection.actual,
        }
    return {
        "eat_profile": PROFILE,
        "iat": now_unix,
        "ear.verifier-id": {"developer": "overspill", "build": version},
        "submods": {name: submodule},
    }


def _vector(
    assurance: Assurance,
    claims: Mapping[str, str],
    rejection: EvidenceRejected | None,
    *,
    is_appraised: bool,
) -> dict[str, int]:
    vector = dict.fromkeys(_CLAIMS, NO_CLAIM)
    if rejection is not None:
        is_crypto = any(word in rejection.reason for word in _CRYPTO_REASONS)
        vector["hardware"] = CRYPTO_FAILED if is_crypto else CONTRAINDICATED
        return vector
    if assurance >= Assurance.HARDWARE_TPM:
        vector["hardware"] = AFFIRMED
    if assurance is Assurance.HARDWARE_TEE:
        vector["runtime-opaque"] = AFFIRMED
    if is_appraised:
        vector["configuration"] = vector["executables"] = AFFIRMED
    if claims.get("debug") == "true":
        vector["configuration"] = UNSAFE_CONFIGURATION
    return vector


def _status(verdict: str, vector: Mapping[str, int]) -> str:
    if verdict == "rejected":
        return "contraindicated"
    if any(value >= 32 for value in vector.values()):
        return "warning"
    return "affirming" if verdict == "accepted" else "none"
