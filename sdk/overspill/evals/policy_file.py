"""Writes a calibration down: the policy, its certificate, the scorer, and signs them."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from overspill.errors import ConfigurationError
from overspill.evals.calibrate import Calibration, CalibrationOptions
from overspill.identity.base import DeviceKey

_DOMAIN = b"overspill/routing-policy/v1\n"
_DAY_S = 86_400


def policy_toml(found: Calibration, options: CalibrationOptions, now_unix: int) -> str:
    """The policy file's text; :func:`overspill.routing.policy.parse_policy` reads it."""
    certified = found.certified
    version = f"calibrated-{now_unix}-{found.scorer_sha256[:8]}"
    facts: dict[str, Any] = {
        "epsilon": options.epsilon,
        "delta": options.delta,
        "n": certified.n,
        "device_share": round(certified.device_share, 6),
        "regret": round(certified.regret, 6),
        "p_value": certified.p_value,
        "small": options.pair[0],
        "large": options.pair[1],
        "quantization": found.quantization,
        "method": "learn-then-test, fixed sequence",
    }
    return "\n".join(
        [
            "# Written by `overspill calibrate`: a change by hand voids the certificate.",
            f"version = {json.dumps(version)}",
            f"threshold = {certified.threshold!r}",
            f"scorer_sha256 = {json.dumps(found.scorer_sha256)}",
            f"expires_unix = {now_unix + options.lifetime_days * _DAY_S}",
            "",
            "[certificate]",
            *(f"{name} = {_toml(value)}" for name, value in facts.items()),
            "",
            "[isotonic]",
            f"device = {json.dumps(found.device.to_json())}",
            f"cloud = {json.dumps(found.cloud.to_json())}",
            "",
            *_monitor(found),
        ]
    )


def _monitor(found: Calibration) -> list[str]:
    """The section of what was certified for stage 5; none where nothing was."""
    if found.monitor is None or found.monitor.policy is None:
        return []
    table = found.monitor.policy.to_table()
    heads, certificate = table.pop("heads"), table.pop("certificate")
    sections = {
        "monitor": table,
        "monitor.certificate": certificate,
        **{f"monitor.heads.{check}": head for check, head in heads.items()},
    }
    lines = []
    for name, section in sections.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section.items()), ""]
    return lines


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def certificate(
    found: Calibration, options: CalibrationOptions, policy: str, key: DeviceKey
) -> dict[str, Any]:
    """The certificate's JSON, with a signature over the policy's bytes and the certificate."""
    certified = found.certified
    facts: dict[str, Any] = {
        "epsilon": options.epsilon,
        "delta": options.delta,
        "n": certified.n,
        "threshold": certified.threshold,
        "device_share": certified.device_share,
        "policy_sha256": hashlib.sha256(policy.encode()).hexdigest(),
        "certified": True,
        "regret": certified.regret,
        "p_value": certified.p_value,
        "fitted_on": found.fitted_on,
        "seed": options.seed,
        "scorer_sha256": found.scorer_sha256,
        "models": {"small": options.pair[0], "large": options.pair[1]},
        "quantization": found.quantization,
        "gain_quantiles": found.gain_quantiles,
    }
    if found.monitor is not None:
        facts["monitor"] = {**found.monitor.report, "reason": found.monitor.reason}
    signature = key.sign(_signed(facts))
    facts["signature"] = {
        "algorithm": "ed25519",
        "public_key": base64.b64encode(key.public_der).decode(),
        "value": base64.b64encode(signature).decode(),
    }
    return facts


def verify(policy: Path, trusted_der: bytes | None = None) -> dict[str, Any]:
    """The certificate of a policy file, once hashes and signature agree.

    ``trusted_der`` is the public key that has to have signed. Raises
    :class:`~overspill.errors.ConfigurationError`, naming what does not agree.
    """
    facts = read_certificate(policy)
    signature = facts.pop("signature", None)
    if facts.get("policy_sha256") != hashlib.sha256(policy.read_bytes()).hexdigest():
        raise ConfigurationError(
            f"{policy} is not what its certificate was written for.",
            mend="Restore the file, or run `overspill calibrate` again.",
        )
    scorer = scorer_path(policy)
    if facts.get("scorer_sha256") != hashlib.sha256(scorer.read_bytes()).hexdigest():
        raise ConfigurationError(f"{scorer} is not the scorer that was certified.")
    try:
        der = base64.b64decode(signature["public_key"])
        key = load_der_public_key(der)
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("the key is no Ed25519 key")
        key.verify(base64.b64decode(signature["value"]), _signed(facts))
    except (InvalidSignature, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{certificate_path(policy)} is not validly signed.") from error
    if trusted_der is not None and der != trusted_der:
        raise ConfigurationError(f"{policy} was signed by another key than the one trusted.")
    return {**facts, "signed_by": hashlib.sha256(der).hexdigest()}


def read_certificate(policy: Path) -> dict[str, Any]:
    """The certificate beside a policy, unverified. Raises ``ConfigurationError``."""
    path = certificate_path(policy)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be read as a certificate.") from error
    if not isinstance(facts, dict):
        raise ConfigurationError(f"{path} is no certificate.")
    return facts


def certificate_path(policy: Path) -> Path:
    """``policy.toml`` has ``policy.cert.json``."""
    return policy.with_suffix(".cert.json")


def scorer_path(policy: Path) -> Path:
    """``policy.toml`` has ``policy.scorer.json``."""
    return policy.with_suffix(".scorer.json")


def _signed(facts: dict[str, Any]) -> bytes:
    """What is signed: everything in the certificate, in one canonical form."""
    plain = {name: value for name, value in facts.items() if name != "signature"}
    return _DOMAIN + json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
