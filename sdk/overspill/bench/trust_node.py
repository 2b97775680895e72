"""A node to contact: pinned by its operator, released, logged and witnessed, all in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overspill.sealing.hpke import NodeKeyPair
from overspill.sealing.receipt import ReceiptKey
from overspill.trust import pinned
from overspill.trust.log.checkpoint import Checkpoint
from overspill.trust.log.cosignature import cosign
from overspill.trust.log.merkle import hashes_of, inclusion_proof, leaf_hash, tree_root
from overspill.trust.log.note import COSIGNATURE_V1, ED25519, Note, SignerKey, sign_note
from overspill.trust.log.proof import TlogProof
from overspill.trust.log.tiles import Edge, TileId, extended
from overspill.trust.measured import Measured, MeasuredEntry, ModelEntry, ModelsManifest, log_digest
from overspill.trust.nkc import PRODUCTION, NodeKeyConfig, report_data
from overspill.trust.policy import TrustPolicy, parse_policy
from overspill.trust.release_envelope import Envelope
from overspill.trust.release_manifest import FILE_DIGEST, ReleaseManifest, Subject
from overspill.types.evidence import Evidence, EvidenceBundle

NOW = 1_800_000_000
_ORIGIN = "bench.example/log"
_OPERATORS = ("Alice", "Bob", "Carol")
_ENTRIES = 1000
_SETTINGS = b'{"settings":1}'
_TILE = 256


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


RIVER = _sha256(b"river's weights")
_SUBJECTS = {
    ("wheel", "overspill.whl"): _sha256(b"wheel"),
    ("engine", "engine"): _sha256(b"engine"),
    ("model", "river"): RIVER,
    ("config", "default"): _sha256(_SETTINGS),
}


@dataclass
class ReleasedNode:
    """Its bundle, and the policy that accepts it: two of three release keys, and of witnesses."""

    pair: NodeKeyPair = field(default_factory=NodeKeyPair.generate)
    receipt_key: ReceiptKey = field(default_factory=ReceiptKey.generate)
    operator: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def __post_init__(self) -> None:
        self._log_key = _signer(_ORIGIN, ED25519)
        self._witnesses = {
            name: _signer(f"{name.lower()}.example/w", COSIGNATURE_V1) for name in _OPERATORS
        }
        self._keys = [Ed25519PrivateKey.generate() for _ in range(3)]
        models = ModelsManifest((ModelEntry("river", RIVER, RIVER, RIVER),))
        self.log = _measured(models)
        self._release()
        self.config = NodeKeyConfig(
            mode=PRODUCTION,
            kem_id=self.pair.kem_id,
            kdf_id=1,
            aead_id=3,
            hpke_public_key=self.pair.public_bytes,
            receipt_public_key=self.receipt_key.public_bytes,
            not_before=NOW - 60,
            not_after=NOW + 3600,
            models_digest=models.digest,
            config_digest=_sha256(_SETTINGS),
            boot_id=bytes(16),
            release_id=_sha256(self._envelope.payload),
            freshness_anchor_sha256=_sha256(self._checkpoint),
        )
        self.nkc = self.config.encode()

    @property
    def bundle(self) -> EvidenceBundle:
        """What every client of this node gets."""
        report = report_data(self.nkc, None, dev=False)
        statement = pinned.STATEMENT.make(
            _public(self.operator), None, report, log_digest(self.log), self.operator.sign
        )
        return EvidenceBundle(
            node_key_config=self.nkc,
            evidence=(Evidence(pinned.TYPE, statement),),
            release=self._envelope.encode(),
            release_proof=self._proof,
            measured_log=self.log,
            freshness_anchor=self._checkpoint,
        )

    @property
    def policy(self) -> TrustPolicy:
        """Names this operator, release keys, log and witnesses."""
        keys = ", ".join(f'"{_public(key).hex()}"' for key in self._keys)
        witnesses = "\n".join(f'{n} = ["{k.verifier}"]' for n, k in self._witnesses.items())
        return parse_policy(
            'version = 1\nmin_assurance = "SOFTWARE"\naccept = ["pinned-operator"]\n'
            'freshness = "witnesses"\n'
            f"[release]\nkeys = [{keys}]\nthreshold = 2\nfloor_seq = 1\n"
            f'[log]\nkey = "{self._log_key.verifier}"\nquorum = 2\n[log.witnesses]\n{witnesses}\n'
            f'[pinned-operator]\nkeys = ["{_public(self.operator).hex()}"]'
        )

    def _release(self) -> None:
        """The manifest, signed, appended to a log of a thousand others, and cosigned."""
        subjects = tuple(
            Subject(kind, name, {FILE_DIGEST: digest}) for (kind, name), digest in _SUBJECTS.items()
        )
        manifest = ReleaseManifest("1.0", 7, 5, NOW + 86_400, subjects)
        envelope = Envelope(manifest.encode(), ())
        for key in self._keys[:2]:
            envelope = envelope.signed(_public(key), key.sign)
        self._envelope = envelope
        entries = [*(b"%d" % n for n in range(_ENTRIES)), envelope.encode()]
        leaves = [leaf_hash(entry) for entry in entries]
        hashes = hashes_of(leaves)
        size = len(leaves)
        note = sign_note(Checkpoint(_ORIGIN, size, tree_root(size, hashes)).text(), self._log_key)
        lines = [cosign(note.text, witness, NOW - 120) for witness in self._witnesses.values()]
        self._checkpoint = Note(note.text, (*note.signatures, *lines)).encode()
        path = inclusion_proof(size - 1, size, hashes)
        self._proof = TlogProof(size - 1, path, self._checkpoint, _edge(leaves)).encode()


def _edge(leaves: Sequence[bytes]) -> bytes:
    """The right edge of the tree, which a client keeps to check later checkpoints."""
    hash_at = extended(Edge(0, ()), leaves)

    def read(tile: TileId) -> bytes:
        first = tile.index * _TILE
        return b"".join(hash_at(8 * tile.level, i) for i in range(first, first + tile.width))

    return Edge.read(len(leaves), read).encode()


def _measured(models: ModelsManifest) -> tuple[bytes, ...]:
    manifest = models.encode()
    entries = (
        MeasuredEntry(Measured.WHEEL, "overspill 1", _sha256(b"wheel")),
        MeasuredEntry(Measured.ENGINE, "engine", _sha256(b"engine")),
        MeasuredEntry(Measured.MODELS, "models", _sha256(manifest), manifest),
        MeasuredEntry(Measured.CONFIG, "config", _sha256(_SETTINGS), _SETTINGS),
    )
    return tuple(entry.encode() for entry in entries)


def _signer(name: str, kind: int) -> SignerKey:
    return SignerKey(name, kind, _sha256(name.encode()))


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()
