"""What belongs to a calibrated policy file: its certificate and its scorer, and that they agree.

``policy.toml`` has ``policy.cert.json`` and ``policy.scorer.json`` beside it. The certificate names
the digests of both, and is signed by whoever calibrated.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from overspill.errors import ConfigurationError

_DOMAIN = b"overspill/routing-policy/v1\n"
_MEND = "Restore the file, or run `overspill calibrate` again."


def verify(policy: Path, trusted_der: bytes | None = None) -> dict[str, Any]:
    """The certificate of a policy file, once hashes and signature agree.

    ``trusted_der`` is the public key that has to have signed. Raises
    :class:`~overspill.errors.ConfigurationError`, naming what does not agree.
    """
    facts = read_certificate(policy)
    signature = facts.pop("signature", None)
    if facts.get("policy_sha256") != _sha256(policy):
        raise ConfigurationError(
            f"{policy} is not what its certificate was written for.", mend=_MEND
        )
    scorer = scorer_path(policy)
    if facts.get("scorer_sha256") != _sha256(scorer):
        raise ConfigurationError(
            f"{scorer} is not the scorer that {policy.name} was certified with.", mend=_MEND
        )
    der = _signer(policy, signature, facts)
    if trusted_der is not None and der != trusted_der:
        raise ConfigurationError(f"{policy} was signed by another key than the one trusted.")
    return {**facts, "signed_by": hashlib.sha256(der).hexdigest()}


def read_certificate(policy: Path) -> dict[str, Any]:
    """The certificate beside a policy, unverified. Raises ``ConfigurationError``."""
    path = certificate_path(policy)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be read as a certificate.", mend=_MEND) from error
    if not isinstance(facts, dict):
        raise ConfigurationError(f"{path} is no certificate.", mend=_MEND)
    return facts


def certificate_path(policy: Path) -> Path:
    """``policy.toml`` has ``policy.cert.json``."""
    return policy.with_suffix(".cert.json")


def scorer_path(policy: Path) -> Path:
    """``policy.toml`` has ``policy.scorer.json``."""
    return policy.with_suffix(".scorer.json")


def signed_content(facts: dict[str, Any]) -> bytes:
    """What is signed: everything in the certificate, in one canonical form."""
    plain = {name: value for name, value in facts.items() if name != "signature"}
    return _DOMAIN + json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def _signer(policy: Path, signature: Any, facts: dict[str, Any]) -> bytes:
    """The public key (DER) whose signature is good."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        der = base64.b64decode(signature["public_key"])
        key = load_der_public_key(der)
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("the key is no Ed25519 key")
        key.verify(base64.b64decode(signature["value"]), signed_content(facts))
    except (InvalidSignature, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{certificate_path(policy)} is not validly signed.", mend=_MEND
        ) from error
    return der


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.", mend=_MEND) from None
