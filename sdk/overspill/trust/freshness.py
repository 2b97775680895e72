"""Step 4: the keys are of an accepted suite, valid now, young, and answer to a fresh nonce."""

from __future__ import annotations

import hashlib
from types import MappingProxyType
from typing import Final

from overspill.errors import EvidenceRejected, LogInvalid
from overspill.trust.log.cosignature import open_cosigned
from overspill.trust.nkc import MAX_LIFETIME_S, NO_DIGEST, NodeKeyConfig
from overspill.trust.policy import TrustPolicy
from overspill.types.evidence import EvidenceBundle

NONCE_BYTES: Final = 32
ANCHOR_MAX_AGE_S: Final = 900
"""How much older than the keys the newest cosignature under them may be."""
_KDF_AND_AEAD: Final = (1, 3)
_KEY_BYTES: Final = MappingProxyType({0x0020: 32, 0x647A: 1216})


def check(
    config: NodeKeyConfig,
    bundle: EvidenceBundle,
    nonce: bytes | None,
    now_unix: int,
    policy: TrustPolicy,
) -> str:
    """Raises ``EvidenceRejected`` for keys that must not be sealed to, or not any more."""
    _check_suite(config, policy)
    _check_validity(config, now_unix, policy)
    _check_nonce(nonce, policy)
    _check_anchor(config, bundle.freshness_anchor)
    if policy.freshness == "witnesses":
        _check_witnessed(config, bundle.freshness_anchor, policy, now_unix)
    return f"KEM {config.kem_id:#06x}, valid for {accepted_until(config, policy) - now_unix} s more"


def accepted_until(config: NodeKeyConfig, policy: TrustPolicy) -> int:
    """Unix seconds until which new requests may be sealed to this configuration."""
    return min(config.not_after, config.not_before + policy.max_age_s)


def _check_suite(config: NodeKeyConfig, policy: TrustPolicy) -> None:
    if config.kem_id not in policy.kems:
        accepted = ", ".join(f"{kem:#06x}" for kem in sorted(policy.kems))
        raise _refusal("kem_not_accepted", f"KEM {accepted}", f"{config.kem_id:#06x}")
    if (config.kdf_id, config.aead_id) != _KDF_AND_AEAD:
        actual = f"kdf {config.kdf_id:#06x}, aead {config.aead_id:#06x}"
        raise _refusal("suite_unsupported", "HKDF-SHA256 with ChaCha20-Poly1305", actual)
    if len(config.hpke_public_key) != _KEY_BYTES[config.kem_id]:
        expected = f"a key of {_KEY_BYTES[config.kem_id]} bytes"
        raise _refusal("hpke_key_length", expected, str(len(config.hpke_public_key)))


def _check_validity(config: NodeKeyConfig, now_unix: int, policy: TrustPolicy) -> None:
    lifetime_s = config.not_after - config.not_before
    if not 0 < lifetime_s <= MAX_LIFETIME_S:
        raise _refusal("nkc_lifetime", f"a lifetime of at most {MAX_LIFETIME_S} s", str(lifetime_s))
    if now_unix < config.not_before:
        raise _refusal(
            "nkc_not_yet_valid",
            f"a configuration valid at {now_unix}",
            f"one valid from {config.not_before}",
            "Set this machine's clock, or the node's.",
        )
    if now_unix >= config.not_after:
        raise _refusal(
            "nkc_expired", f"a configuration valid at {now_unix}", f"expired {config.not_after}"
        )
    if now_unix >= config.not_before + policy.max_age_s:
        age_s = now_unix - config.not_before
        raise _refusal("nkc_too_old", f"an age under {policy.max_age_s} s", f"{age_s} s")


def _check_nonce(nonce: bytes | None, policy: TrustPolicy) -> None:
    if nonce is None and policy.freshness == "nonce":
        raise _refusal(
            "nonce_required",
            "evidence over a fresh challenge",
            "evidence without one",
            "Ask the node by Challenge.",
        )
    if nonce is not None and (len(nonce) != NONCE_BYTES or not any(nonce)):
        raise _refusal("nonce_invalid", "a challenge of 32 random bytes", "zeros or another length")


def _check_anchor(config: NodeKeyConfig, anchor: bytes) -> None:
    expected = hashlib.sha256(anchor).digest() if anchor else NO_DIGEST
    if config.freshness_anchor_sha256 != expected:
        raise _refusal("anchor_mismatch", "the freshness anchor that the keys name", "another")


def _check_witnessed(
    config: NodeKeyConfig, anchor: bytes, policy: TrustPolicy, now_unix: int
) -> None:
    """The keys were made shortly after witnesses saw the log: nobody could have kept them ready."""
    if not anchor or policy.log is None or not policy.log.witnesses:
        raise _refusal(
            "freshness_unproven",
            f"a checkpoint by a log and its witnesses under {policy.source}",
            "no checkpoint" if policy.log else "a policy that names no log",
            'Name [release] and [log] with witnesses, or say freshness = "nonce".',
        )
    try:
        newest = open_cosigned(anchor, policy.log, now_unix).newest or 0
    except LogInvalid as error:
        raise EvidenceRejected(
            error.reason, "4", expected=error.expected, actual=error.actual, mend=error.mend
        ) from error
    oldest = config.not_before - ANCHOR_MAX_AGE_S
    if newest < oldest:
        raise _refusal(
            "anchor_stale",
            f"a checkpoint cosigned after {oldest}",
            f"one cosigned {config.not_before - newest} s before the keys",
            "The node has to show a newer one: its log's witnesses may be down.",
        )


def _refusal(reason: str, expected: str, actual: str, mend: str = "") -> EvidenceRejected:
    return EvidenceRejected(reason, "4", expected=expected, actual=actual, mend=mend)
