"""Nodes that vouch for themselves in each way there is, and the policies that accept them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overspill.sealing.hpke import NodeKeyPair
from overspill.sealing.receipt import ReceiptKey
from overspill.trust import dev, pinned
from overspill.trust.measured import (
    Measured,
    MeasuredEntry,
    ModelEntry,
    ModelsManifest,
    log_digest,
)
from overspill.trust.nkc import DEV, PRODUCTION, NodeKeyConfig, report_data
from overspill.trust.policy import TrustPolicy, parse_policy
from overspill.trust.statement import StatementKind
from overspill.trust.template import dev_policy, pinned_policy
from overspill.trust.verifier import Context
from overspill.types.evidence import Evidence, EvidenceBundle

NOW = 1_800_000_000
NONCE = bytes(range(32))
RIVER = hashlib.sha256(b"river's weights").digest()


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def measured_log(models: ModelsManifest, config: bytes = b'{"settings":1}') -> tuple[bytes, ...]:
    manifest = models.encode()
    entries = (
        MeasuredEntry(Measured.WHEEL, "overspill 1", sha256(b"wheel")),
        MeasuredEntry(Measured.ENGINE, "echo", sha256(b"engine")),
        MeasuredEntry(Measured.MODELS, "models", sha256(manifest), manifest),
        MeasuredEntry(Measured.CONFIG, "config", sha256(config), config),
    )
    return tuple(entry.encode() for entry in entries)


RIVER_ONLY = ModelsManifest((ModelEntry("river", RIVER, RIVER, RIVER),))


@dataclass
class SigningNode:
    """A node whose evidence is a signed statement; every part can be swapped for a wrong one."""

    kind: StatementKind
    evidence_type: str
    dev: bool
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    models: ModelsManifest = RIVER_ONLY
    pair: NodeKeyPair = field(default_factory=NodeKeyPair.generate)
    receipt_key: ReceiptKey = field(default_factory=ReceiptKey.generate)

    @property
    def root(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def log(self) -> tuple[bytes, ...]:
        return measured_log(self.models)

    @property
    def policy_text(self) -> str:
        make = dev_policy if self.dev else pinned_policy
        return make(self.root, {"river": RIVER})

    @property
    def policy(self) -> TrustPolicy:
        return parse_policy(self.policy_text, "trust.toml")

    def config(self, **changes) -> NodeKeyConfig:
        fields = {
            "mode": DEV if self.dev else PRODUCTION,
            "kem_id": self.pair.kem_id,
            "kdf_id": 1,
            "aead_id": 3,
            "hpke_public_key": self.pair.public_bytes,
            "receipt_public_key": self.receipt_key.public_bytes,
            "not_before": NOW - 60,
            "not_after": NOW + 3600,
            "models_digest": self.models.digest,
            "config_digest": sha256(b'{"settings":1}'),
            "boot_id": bytes(16),
        }
        return NodeKeyConfig(**(fields | changes))

    def evidence(self, nkc: bytes, nonce: bytes | None, log: tuple[bytes, ...], **how) -> Evidence:
        report = report_data(nkc, nonce, how.get("label_dev", self.dev))
        data = self.kind.make(self.root, nonce, report, log_digest(log), self.key.sign)
        return Evidence(self.evidence_type, data)

    def bundle(
        self,
        nonce: bytes | None = NONCE,
        *,
        log: tuple[bytes, ...] | None = None,
        label_dev: bool | None = None,
        **changes,
    ) -> EvidenceBundle:
        """A good bundle, but for the ``changes`` to its configuration."""
        log = self.log if log is None else log
        nkc = self.config(**changes).encode()
        how = {} if label_dev is None else {"label_dev": label_dev}
        return EvidenceBundle(nkc, (self.evidence(nkc, nonce, log, **how),), measured_log=log)


def context(**changes) -> Context:
    base = Context(now_unix=NOW, address="127.0.0.1:7001", is_local=True, nonce=NONCE)
    return replace(base, **changes)


@pytest.fixture
def dev_node() -> SigningNode:
    return SigningNode(dev.STATEMENT, dev.TYPE, dev=True)


@pytest.fixture
def pinned_node() -> SigningNode:
    return SigningNode(pinned.STATEMENT, pinned.TYPE, dev=False)


@pytest.fixture(params=["dev", "pinned"])
def node(request: pytest.FixtureRequest) -> SigningNode:
    """Each kind of node in turn."""
    return request.getfixturevalue(f"{request.param}_node")


@pytest.fixture(scope="session")
def at() -> Callable[..., Context]:
    """``at(now_unix=..., nonce=...)``: a context on loopback, with changes."""
    return context


@pytest.fixture(scope="session")
def log_of() -> Callable[..., tuple[bytes, ...]]:
    """``log_of(manifest, config)``: a measured log."""
    return measured_log


@pytest.fixture(scope="session")
def sources(repository: Path) -> Path:
    """Where the shipped packages' sources are."""
    return repository
