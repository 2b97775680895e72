"""HPKE: others' vectors, and what must not open."""

from __future__ import annotations

import hashlib
import json
import pickle

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from overspill.errors import EvidenceRejected, StreamCorrupt, UsageError
from overspill.sealing import hpke
from overspill.sealing.hpke import (
    AEAD_CHACHA20_POLY1305,
    KDF_HKDF_SHA256,
    KEM_MLKEM768_X25519,
    KEM_X25519,
    NodeKeyPair,
    seal_secret,
)

KEMS = (KEM_X25519, KEM_MLKEM768_X25519)


def _private_key(vector: dict):
    secret = bytes.fromhex(vector["skRm"])
    if vector["kem_id"] == KEM_X25519:
        return X25519PrivateKey.from_private_bytes(secret), None
    seeds = hashlib.shake_256(secret).digest(96)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(seeds[:64])
    x25519 = X25519PrivateKey.from_private_bytes(seeds[64:])
    return MLKEM768X25519PrivateKey(mlkem, x25519), NodeKeyPair._hybrid(mlkem, x25519)


def _vectors(shared_data):
    for name in ("rfc9180_subset.json", "hpke_pq_subset.json"):
        for vector in json.loads((shared_data / "vectors/hpke" / name).read_text()):
            ids = (vector["kem_id"], vector["kdf_id"], vector["aead_id"])
            if ids[0] in KEMS and ids[1:] == (KDF_HKDF_SHA256, AEAD_CHACHA20_POLY1305):
                yield vector


def test_others_vectors_open(shared_data):
    """The key and nonce of the vectors' own key schedules: decapsulation and schedule agree."""
    seen = set()
    for vector in _vectors(shared_data):
        private_key, _ = _private_key(vector)
        key, nonce = bytes.fromhex(vector["key"]), bytes.fromhex(vector["base_nonce"])
        sealed = bytes.fromhex(vector["enc"]) + ChaCha20Poly1305(key).encrypt(nonce, b"hi", b"")
        info = bytes.fromhex(vector["info"])
        opened = hpke._SUITES[vector["kem_id"]].decrypt(sealed, private_key, info=info)
        assert opened == b"hi"
        seen.add(vector["kem_id"])
    assert seen == set(KEMS)


def test_public_keys_are_laid_out_as_in_the_vectors(shared_data):
    hybrid = [v for v in _vectors(shared_data) if v["kem_id"] == KEM_MLKEM768_X25519]
    assert hybrid
    for vector in hybrid:
        _, pair = _private_key(vector)
        assert pair.public_bytes.hex() == vector["pkRm"]


@pytest.mark.parametrize("kem", KEMS)
def test_a_secret_opens_at_its_node(new_ends, kem):
    ends = new_ends(kem)
    assert len(ends.sealed.sealed_key) == hpke.SEALED_KEY_BYTES[kem]
    assert ends.node.open(ends.sealed.sealed_key, ends.result.nkc_sha256) == ends.sealed.secret
    assert len(ends.sealed.secret) == 32


def test_two_requests_never_share_a_secret(ends):
    again = seal_secret(ends.result)
    assert again.secret != ends.sealed.secret
    assert again.sealed_key != ends.sealed.sealed_key


@pytest.mark.parametrize("kem", KEMS)
def test_t36_sealed_key_from_another_nkc(new_ends, kem):
    ends = new_ends(kem)
    other = hashlib.sha256(b"another configuration").digest()
    with pytest.raises(StreamCorrupt, match="does not open"):
        ends.node.open(ends.sealed.sealed_key, other)
    with pytest.raises(StreamCorrupt, match="does not open"):
        NodeKeyPair.generate(kem).open(ends.sealed.sealed_key, ends.result.nkc_sha256)


@pytest.mark.parametrize("kem", KEMS)
def test_every_flipped_byte_of_a_sealed_key_is_refused(new_ends, kem):
    ends = new_ends(kem)
    sealed = ends.sealed.sealed_key
    for at in range(len(sealed)):
        bad = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(StreamCorrupt):
            ends.node.open(bad, ends.result.nkc_sha256)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=1300))
def test_garbage_raises_one_type(garbage):
    with pytest.raises(StreamCorrupt):
        _NODE.open(garbage, bytes(32))


_NODE = NodeKeyPair.generate()


def test_t35_a_key_of_another_kem_is_not_sealed_to(result_for):
    node = NodeKeyPair.generate(KEM_X25519)
    result = result_for(node, b"nkc")
    object.__setattr__(result, "kem_id", KEM_MLKEM768_X25519)
    with pytest.raises(EvidenceRejected, match="a public key of KEM 0x647a"):
        seal_secret(result)


@pytest.mark.parametrize(
    ("kem", "public"),
    [
        (KEM_X25519, b""),
        (KEM_X25519, bytes(32)),
        (KEM_X25519, b"\x01" + bytes(31)),
        (KEM_X25519, bytes(33)),
        (KEM_MLKEM768_X25519, bytes(32)),
        (KEM_MLKEM768_X25519, bytes(1216)),
        (KEM_MLKEM768_X25519, b"\xff" * 1216),
    ],
    ids=["none", "zero", "small-order", "long", "short", "zero-hybrid", "not-reduced"],
)
def test_nothing_is_sealed_to_what_is_no_key(ends, kem, public):
    """The peer is wrong, not the call: a trust error."""
    object.__setattr__(ends.result, "kem_id", kem)
    object.__setattr__(ends.result, "hpke_public_key", public)
    with pytest.raises(EvidenceRejected) as caught:
        seal_secret(ends.result)
    assert caught.value.reason == "hpke_key_invalid"


@pytest.mark.parametrize(("field", "value"), [("kem_id", 0x10), ("kdf_id", 2), ("aead_id", 1)])
def test_other_suites_are_not_sealed_to(ends, field, value):
    object.__setattr__(ends.result, field, value)
    with pytest.raises(UsageError, match="not supported"):
        seal_secret(ends.result)


def test_private_keys_and_secrets_stay_in(ends):
    with pytest.raises(UsageError):
        pickle.dumps(ends.node)
    assert ends.sealed.secret.hex() not in repr(ends.sealed)
    assert repr(ends.sealed.secret) not in repr(ends.sealed)
