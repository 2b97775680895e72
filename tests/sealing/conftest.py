"""One request's keys at both ends, made the way a client and a node make them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import pytest

from overspill.sealing.hpke import (
    AEAD_CHACHA20_POLY1305,
    KDF_HKDF_SHA256,
    KEM_MLKEM768_X25519,
    NodeKeyPair,
    SealedSecret,
    seal_secret,
)
from overspill.sealing.schedule import KeySchedule, derive
from overspill.types.evidence import Assurance, AttestationResult


@dataclass(frozen=True)
class Ends:
    """A node, what its verifier concluded, and the keys of one request."""

    node: NodeKeyPair
    result: AttestationResult
    sealed: SealedSecret
    keys: KeySchedule
    response_nonce: bytes


def attested(node: NodeKeyPair, nkc: bytes) -> AttestationResult:
    return AttestationResult(
        assurance=Assurance.NONE,
        evidence_type="test",
        dev=True,
        node_key_config=nkc,
        nkc_sha256=hashlib.sha256(nkc).digest(),
        kem_id=node.kem_id,
        kdf_id=KDF_HKDF_SHA256,
        aead_id=AEAD_CHACHA20_POLY1305,
        hpke_public_key=node.public_bytes,
        receipt_public_key=bytes(32),
        models_digest=bytes(32),
        config_digest=bytes(32),
        release_id=bytes(32),
        boot_id=bytes(16),
        not_before=0,
        not_after=1,
        accepted_until=1,
        policy_sha256=bytes(32),
    )


def make_ends(kem_id: int = KEM_MLKEM768_X25519) -> Ends:
    node = NodeKeyPair.generate(kem_id)
    result = attested(node, b"a node's configuration")
    sealed = seal_secret(result)
    keys = derive(result.nkc_sha256, sealed.sealed_key, sealed.secret)
    return Ends(node, result, sealed, keys, os.urandom(32))


@pytest.fixture
def ends() -> Ends:
    return make_ends()


@pytest.fixture(scope="session")
def new_ends():
    """``new_ends(kem_id)``: another node and another request."""
    return make_ends


@pytest.fixture(scope="session")
def result_for():
    """``result_for(node, nkc)``: a verifier's conclusion about a node."""
    return attested
