"""A released node, its log and its witnesses; every part can be made wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overspill.sealing.hpke import NodeKeyPair
from overspill.trust import pinned
from overspill.trust.log.checkpoint import Checkpoint
from overspill.trust.log.cosignature import cosign
from overspill.trust.log.merkle import hashes_of, inclusion_proof, leaf_hash, tree_root
from overspill.trust.log.note import COSIGNATURE_V1, ED25519, Note, SignerKey, sign_note
from overspill.trust.log.proof import TlogProof
from overspill.trust.log.tiles import Edge, extended
from overspill.trust.measured import (
    Measured,
    MeasuredEntry,
    ModelEntry,
    ModelsManifest,
    log_digest,
)
from overspill.trust.nkc import PRODUCTION, NodeKeyConfig, report_data
from overspill.trust.policy import TrustPolicy, parse_policy
from overspill.trust.release_envelope import Envelope
from overspill.trust.release_manifest import FILE_DIGEST, ReleaseManifest, Subject
from overspill.trust.verifier import Context
from overspill.types.evidence import Evidence, EvidenceBundle

NOW = 1_800_000_000
ORIGIN = "releases.example/log"
OPERATORS = ("Alice", "Bob", "Carol")
SETTINGS = b'{"settings":1}'


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


RIVER = sha256(b"river's weights")
MODELS = ModelsManifest((ModelEntry("river", RIVER, RIVER, RIVER),))


def measured_log(models: ModelsManifest = MODELS, wheel: bytes = b"wheel") -> tuple[bytes, ...]:
    manifest = models.encode()
    entries = (
        MeasuredEntry(Measured.WHEEL, "overspill 1", sha256(wheel)),
        MeasuredEntry(Measured.ENGINE, "echo", sha256(b"engine")),
        MeasuredEntry(Measured.MODELS, "models", sha256(manifest), manifest),
        MeasuredEntry(Measured.CONFIG, "config", sha256(SETTINGS), SETTINGS),
    )
    return tuple(entry.encode() for entry in entries)


def subjects(**changes: bytes) -> tuple[Subject, ...]:
    digests = {
        "wheel/overspill-1.whl": sha256(b"wheel"),
        "engine/echo": sha256(b"engine"),
        "model/river": RIVER,
        "config/default": sha256(SETTINGS),
    } | {name.replace("__", "/"): value for name, value in changes.items()}
    return tuple(
        Subject(*name.split("/", 1), {FILE_DIGEST: value}) for name, value in digests.items()
    )


def signer(name: str, kind: int) -> SignerKey:
    return SignerKey(name, kind, sha256(name.encode() + bytes((kind,))))


def release_key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([0x40 + number] * 32))


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


@dataclass
class World:
    """A log in memory with its witnesses, and a pinned node whose release is in it."""

    entries: list[bytes] = field(default_factory=lambda: [b"first entry", b"second entry"])
    log_key: SignerKey = field(default_factory=lambda: signer(ORIGIN, ED25519))
    witnesses: dict[str, SignerKey] = field(
        default_factory=lambda: {
            name: signer(f"{name.lower()}.example/w", COSIGNATURE_V1) for name in OPERATORS
        }
    )
    keys: tuple[Ed25519PrivateKey, ...] = (release_key(1), release_key(2), release_key(3))
    operator: Ed25519PrivateKey = field(default_factory=lambda: release_key(9))
    pair: NodeKeyPair = field(default_factory=NodeKeyPair.generate)

    # The log ----------------------------------------------------------------------------------

    def leaves(self, size: int | None = None) -> list[bytes]:
        return [leaf_hash(entry) for entry in self.entries[:size]]

    def head(self, size: int | None = None) -> Checkpoint:
        leaves = self.leaves(size)
        return Checkpoint(ORIGIN, len(leaves), tree_root(len(leaves), hashes_of(leaves)))

    def checkpoint(
        self,
        head: Checkpoint | None = None,
        *,
        witnesses: tuple[str, ...] = OPERATORS,
        at: int = NOW - 120,
        key: SignerKey | None = None,
    ) -> bytes:
        head = head or self.head()
        note = sign_note(head.text(), key or self.log_key)
        lines = [cosign(note.text, self.witnesses[name], at) for name in witnesses]
        return Note(note.text, (*note.signatures, *lines)).encode()

    def edge(self) -> bytes:
        """Of the whole log; every tile of a small one."""
        size = len(self.entries)
        hash_at = extended(Edge(0, ()), self.leaves())

        def read(tile: Any) -> bytes:
            first = tile.index * 256
            hashes = (hash_at(8 * tile.level, i) for i in range(first, first + tile.width))
            return b"".join(hashes)

        return Edge.read(size, read).encode()

    def proof(self, entry: bytes, checkpoint: bytes | None = None, **changes: Any) -> bytes:
        index = self.entries.index(entry)
        path = inclusion_proof(index, len(self.entries), hashes_of(self.leaves()))
        made = TlogProof(index, path, checkpoint or self.checkpoint(), self.edge())
        return replace(made, **changes).encode()

    # The release ------------------------------------------------------------------------------

    def manifest(self, **changes: Any) -> ReleaseManifest:
        base = ReleaseManifest("1.0", 7, 5, NOW + 86_400, subjects())
        return replace(base, **changes)

    def envelope(
        self, manifest: ReleaseManifest | None = None, signers: int = 2, **changes: Any
    ) -> Envelope:
        made = replace(Envelope((manifest or self.manifest()).encode(), ()), **changes)
        for key in self.keys[:signers]:
            made = made.signed(public(key), key.sign)
        return made

    # The node ---------------------------------------------------------------------------------

    def bundle(
        self,
        envelope: Envelope | bytes | None = None,
        *,
        proof: bytes | None = None,
        anchor: bytes | None = None,
        log: tuple[bytes, ...] | None = None,
        models: ModelsManifest = MODELS,
        nonce: bytes | None = None,
        **config: Any,
    ) -> EvidenceBundle:
        """A good bundle of a logged release, but for what is given."""
        envelope = envelope or self.envelope()
        data = envelope if isinstance(envelope, bytes) else envelope.encode()
        if data not in self.entries:
            self.entries.append(data)
        anchor = self.checkpoint() if anchor is None else anchor
        payload = b"" if isinstance(envelope, bytes) else envelope.payload
        log = log or measured_log(models)
        fields = {
            "mode": PRODUCTION,
            "kem_id": self.pair.kem_id,
            "kdf_id": 1,
            "aead_id": 3,
            "hpke_public_key": self.pair.public_bytes,
            "receipt_public_key": public(self.operator),
            "not_before": NOW - 60,
            "not_after": NOW + 3600,
            "models_digest": models.digest,
            "config_digest": sha256(SETTINGS),
            "boot_id": bytes(16),
            "release_id": sha256(payload),
            "freshness_anchor_sha256": sha256(anchor) if anchor else bytes(32),
        }
        nkc = NodeKeyConfig(**(fields | config)).encode()
        report = report_data(nkc, nonce, False)
        made = pinned.STATEMENT.make(
            public(self.operator), nonce, report, log_digest(log), self.operator.sign
        )
        return EvidenceBundle(
            node_key_config=nkc,
            evidence=(Evidence(pinned.TYPE, made),),
            release=data,
            release_proof=self.proof(data) if proof is None else proof,
            measured_log=log,
            freshness_anchor=anchor,
        )

    def policy_text(self, **changes: str) -> str:
        keys = ", ".join(f'"{public(key).hex()}"' for key in self.keys)
        named = "\n".join(f'{n} = ["{k.verifier}"]' for n, k in self.witnesses.items())
        parts = {
            "head": 'version = 1\nmin_assurance = "SOFTWARE"\naccept = ["pinned-operator"]',
            "freshness": 'freshness = "witnesses"',
            "release": f"[release]\nkeys = [{keys}]\nthreshold = 2\nfloor_seq = 6",
            "log": f'[log]\nkey = "{self.log_key.verifier}"\nquorum = 2',
            "witnesses": f"[log.witnesses]\n{named}",
            "pinned": f'[pinned-operator]\nkeys = ["{public(self.operator).hex()}"]',
        }
        return "\n".join((parts | changes).values())

    def policy(self, **changes: str) -> TrustPolicy:
        return parse_policy(self.policy_text(**changes), "trust.toml")


def context(**changes: Any) -> Context:
    return replace(Context(NOW, "node.example:443", False), **changes)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def at() -> Callable[..., Context]:
    """``at(now_unix=..., memory=...)``: who asks, without a nonce."""
    return context


@pytest.fixture(scope="session")
def key_of() -> Callable[[str, int], SignerKey]:
    """``key_of(name, kind)``: the same key each time."""
    return signer


@pytest.fixture(scope="session")
def subjects_of() -> Callable[..., tuple[Subject, ...]]:
    """``subjects_of(model__river=digest)``: a release's subjects, some changed."""
    return subjects


@pytest.fixture(scope="session")
def log_of() -> Callable[..., tuple[bytes, ...]]:
    """``log_of(models, wheel)``: a measured log."""
    return measured_log


@pytest.fixture(scope="session")
def vectors(shared_data: Path) -> Path:
    """Others' vectors."""
    return shared_data / "vectors"
