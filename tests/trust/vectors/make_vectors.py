"""Writes the bundles of this folder, each named for its defect: fixed keys, fixed clock.

    python tests/trust/vectors/make_vectors.py            write them
    python tests/trust/vectors/make_vectors.py --check    exit 1 and name each that differs

They are for verifiers in any language: a bundle, who asks and when, a policy, and the one reason
for which it has to be refused ("accepted" for the good ones). A file that changes here is a
changed wire format.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overspill.trust import dev, pinned
from overspill.trust.measured import (
    Measured,
    MeasuredEntry,
    ModelEntry,
    ModelsManifest,
    log_digest,
)
from overspill.trust.nkc import DEV, PRODUCTION, NodeKeyConfig, report_data
from overspill.trust.template import dev_policy, pinned_policy
from overspill.types.evidence import Evidence, EvidenceBundle

FOLDER = Path(__file__).resolve().parent
NOW = 1_800_000_000
NONCE = bytes(range(32))
OPERATOR = Ed25519PrivateKey.from_private_bytes(bytes([0x11] * 32))
DEV_KEY = Ed25519PrivateKey.from_private_bytes(bytes([0x22] * 32))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes([0x33] * 32))
SETTINGS = b'{"prefix_cache":"per request"}'


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


RIVER, OTHER = sha256(b"river"), sha256(b"another model")
MANIFEST = ModelsManifest((ModelEntry("river", RIVER, RIVER, RIVER),))


def log(manifest: ModelsManifest = MANIFEST, settings: bytes = SETTINGS) -> tuple[bytes, ...]:
    content = manifest.encode()
    entries = (
        MeasuredEntry(Measured.WHEEL, "overspill 0.1.0", sha256(b"wheel")),
        MeasuredEntry(Measured.ENGINE, "llama.cpp", sha256(b"engine")),
        MeasuredEntry(Measured.MODELS, "models", sha256(content), content),
        MeasuredEntry(Measured.CONFIG, "config", sha256(settings), settings),
    )
    return tuple(entry.encode() for entry in entries)


def config(**changes: Any) -> NodeKeyConfig:
    base = NodeKeyConfig(
        mode=PRODUCTION,
        kem_id=0x647A,
        kdf_id=1,
        aead_id=3,
        hpke_public_key=bytes(i % 251 for i in range(1216)),
        receipt_public_key=sha256(b"receipt key"),
        not_before=NOW - 60,
        not_after=NOW + 3600,
        models_digest=MANIFEST.digest,
        config_digest=sha256(SETTINGS),
        boot_id=bytes(range(16)),
    )
    return replace(base, **changes)


def bundle(
    nkc: NodeKeyConfig | None = None,
    *,
    signer: Ed25519PrivateKey = OPERATOR,
    kind: Any = pinned,
    label_dev: bool | None = None,
    nonce: bytes | None = NONCE,
    measured: tuple[bytes, ...] | None = None,
) -> EvidenceBundle:
    encoded = (nkc or config()).encode()
    measured = log() if measured is None else measured
    label_dev = kind is dev if label_dev is None else label_dev
    public = signer.public_key().public_bytes_raw()
    report = report_data(encoded, nonce, label_dev)
    data = kind.STATEMENT.make(public, nonce, report, log_digest(measured), signer.sign)
    return EvidenceBundle(encoded, (Evidence(kind.TYPE, data),), measured_log=measured)


def dev_bundle(**how: Any) -> EvidenceBundle:
    return bundle(config(mode=DEV), signer=DEV_KEY, kind=dev, **how)


def swap_nkc(good: EvidenceBundle, nkc: bytes) -> EvidenceBundle:
    return replace(good, node_key_config=nkc)


def cases() -> Iterator[tuple[str, str, EvidenceBundle, dict[str, Any]]]:
    """(file name, reason, bundle, what differs from the usual context and policy)."""
    good = bundle()
    nkc = good.node_key_config
    yield "good_pinned", "accepted", good, {}
    yield "good_dev", "accepted", dev_bundle(), {"policy": "dev"}
    yield "t01_wrong_nonce", "nonce_mismatch", bundle(nonce=bytes([9] * 32)), {}
    yield "t02_zero_nonce", "nonce_zero", bundle(nonce=None), {}
    yield "t06_other_label", "report_data_label", bundle(label_dev=True), {}
    flipped = nkc[:-33] + bytes([nkc[-33] ^ 1]) + nkc[-32:]
    yield "t07_nkc_byte_changed", "nkc_not_bound", swap_nkc(good, flipped), {}
    yield "t08_nkc_not_canonical", "nkc_not_canonical", swap_nkc(good, nkc + b"\0"), {}
    stolen = config(hpke_public_key=bytes(1216)).encode()
    yield "t09_stolen_bundle", "nkc_not_bound", swap_nkc(good, stolen), {}
    yield "t10_expired", "nkc_expired", bundle(config(not_after=NOW)), {}
    yield "t10_not_yet_valid", "nkc_not_yet_valid", bundle(config(not_before=NOW + 1)), {}
    long = config(not_before=NOW, not_after=NOW + 24 * 3600 + 1)
    yield "t10_longer_than_a_day", "nkc_lifetime", bundle(long), {}
    small = config(kem_id=0x0020, hpke_public_key=bytes(32))
    yield "t35_kem_downgraded", "kem_not_accepted", bundle(small), {}
    yield from model_cases()
    yield "t59_dev_under_default_policy", "dev_evidence", dev_bundle(), {"policy": "default"}
    remote = {"policy": "dev", "address": "node.example:443", "is_local": False}
    yield "t60_dev_from_remote", "dev_not_local", dev_bundle(), remote
    yield "stranger_signs", "operator_not_pinned", bundle(signer=STRANGER), {}


def model_cases() -> Iterator[tuple[str, str, EvidenceBundle, dict[str, Any]]]:
    """The cases about what runs."""
    river = MANIFEST.models[0]
    manifests = {
        "t45_model_swapped": ("model_digest", ModelEntry("river", OTHER, OTHER, OTHER)),
        "t45_adapter_not_listed": (
            "adapter_not_listed",
            replace(river, adapters=(("tuned", OTHER),)),
        ),
    }
    for name, (reason, model) in manifests.items():
        manifest = ModelsManifest((model,))
        made = bundle(config(models_digest=manifest.digest), measured=log(manifest))
        yield name, reason, made, {}
    two = ModelsManifest((river, ModelEntry("other", OTHER, OTHER, OTHER)))
    made = bundle(config(models_digest=two.digest), measured=log(two))
    yield "t45_second_model", "model_not_listed", made, {}
    swapped = bundle(measured=log(settings=b'{"prefix_cache":"shared"}'))
    yield "t46_config_swapped", "config_digest_mismatch", swapped, {}
    extra = bundle(measured=(*log(), log()[0]))
    yield "t47_extra_measured_file", "extra_measurement", extra, {}


def policy_text(name: str) -> str:
    """The TOML of a policy; nothing for the default one."""
    models = {"river": RIVER}
    public = {"pinned": OPERATOR, "dev": DEV_KEY}.get(name)
    if public is None:
        return ""
    make = pinned_policy if name == "pinned" else dev_policy
    return make(public.public_key().public_bytes_raw(), models)


def as_json(reason: str, made: EvidenceBundle, how: dict[str, Any]) -> str:
    evidence = made.evidence[0]
    document = {
        "expect": reason,
        "now_unix": NOW,
        "nonce": NONCE.hex(),
        "address": how.get("address", "127.0.0.1:7001"),
        "is_local": how.get("is_local", True),
        "policy": policy_text(how.get("policy", "pinned")),
        "node_key_config": made.node_key_config.hex(),
        "evidence": {"type": evidence.type, "data": evidence.data.hex()},
        "measured_log": [entry.hex() for entry in made.measured_log],
    }
    return json.dumps(document, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    differ = []
    for name, reason, made, how in cases():
        file, text = FOLDER / f"{name}.json", as_json(reason, made, how)
        if arguments != ["--check"]:
            file.write_text(text, "utf-8")
        elif not file.exists() or file.read_text("utf-8") != text:
            differ.append(file.name)
    if differ:
        print("differ from what the script makes:", ", ".join(differ))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
