"""Writes a calibration down: the policy, its certificate, the scorer, and signs them."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from overspill.evals.calibrate import Calibration, CalibrationOptions
from overspill.identity.base import DeviceKey
from overspill.policy_certificate import signed_content

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
    signature = key.sign(signed_content(facts))
    facts["signature"] = {
        "algorithm": "ed25519",
        "public_key": base64.b64encode(key.public_der).decode(),
        "value": base64.b64encode(signature).decode(),
    }
    return facts
