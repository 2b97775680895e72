"""ML-DSA-44 cosignatures (c2sp.org/tlog-cosignature, type 0x06), where the library knows them."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from cryptography.exceptions import UnsupportedAlgorithm

from overspill.errors import ConfigurationError, LogInvalid
from overspill.releasing.cosigning import witness_endpoint
from overspill.releasing.witness_store import WitnessStore
from overspill.trust.log import mldsa
from overspill.trust.log.cosignature import Witness, cosign, cosignature_time, open_cosigned
from overspill.trust.log.note import COSIGNATURE_V1, ML_DSA_44, Note, SignerKey, VerifierKey
from overspill.trust.policy import parse_policy

NOW = 1_800_000_000
KEY = SignerKey("witness.example/pq", ML_DSA_44, bytes(range(32)))
needs_ml_dsa = pytest.mark.skipif(
    not mldsa.is_supported(), reason="this machine's cryptography has no ML-DSA-44"
)


def cosigned(world, key: SignerKey = KEY, unix_s: int = NOW - 5) -> bytes:
    note = Note.parse(world.checkpoint(witnesses=()))
    return Note(note.text, (*note.signatures, cosign(note.text, key, unix_s))).encode()


def policy_with(world, key: VerifierKey, quorum: int = 1):
    return replace(world.policy().log, witnesses=(Witness("Dora", key),), quorum=quorum)


@needs_ml_dsa
def test_a_quorum_may_be_of_ml_dsa(world):
    opened = open_cosigned(cosigned(world), policy_with(world, KEY.verifier), NOW)
    assert opened.times == (("Dora", NOW - 5),)


@needs_ml_dsa
def test_what_is_signed_is_the_whole_tree_as_a_subtree(world):
    """By the specification's words, put together here once more."""
    note = Note.parse(cosigned(world))
    line, head = note.signatures[-1], world.head()
    message = b"subtree/v1\n\0" + bytes([len(KEY.name)]) + KEY.name.encode()
    message += struct.pack(">Q", NOW - 5)
    message += bytes([len(head.origin)]) + head.origin.encode()
    message += struct.pack(">QQ", 0, head.size) + head.root
    assert line.signature[:8] == struct.pack(">Q", NOW - 5)
    assert len(line.signature) == 8 + 2420
    assert mldsa.is_valid(KEY.verifier.public, line.signature[8:], message)


@needs_ml_dsa
@pytest.mark.parametrize("at", [0, 7, 8, 1000, -1])
def test_a_changed_byte_is_refused(world, at):
    note = Note.parse(cosigned(world))
    line = note.signatures[-1]
    changed = bytearray(line.signature)
    changed[at] ^= 1
    bad = replace(line, signature=bytes(changed))
    with pytest.raises(LogInvalid) as caught:
        cosignature_time(note, bad, KEY.verifier)
    assert caught.value.reason == "cosignature_invalid"


@needs_ml_dsa
def test_it_is_over_this_tree_and_by_this_witness(world):
    line = Note.parse(cosigned(world)).signatures[-1]
    other = replace(world.head(), root=bytes(32)).text()
    for note, key in (
        (Note(other, (line,)), KEY.verifier),
        (Note(world.head().text(), (line,)), replace(KEY.verifier, name="witness.example/other")),
    ):
        with pytest.raises(LogInvalid):
            cosignature_time(note, line, key)


@needs_ml_dsa
def test_an_ed25519_signature_is_none_of_ml_dsa(world):
    short = SignerKey(KEY.name, COSIGNATURE_V1, KEY.seed)
    line = cosign(world.head().text(), short, NOW)
    with pytest.raises(LogInvalid, match="72 bytes"):
        cosignature_time(Note(world.head().text(), (line,)), line, KEY.verifier)


@needs_ml_dsa
def test_a_key_has_one_text_form():
    assert VerifierKey.parse(str(KEY.verifier)) == KEY.verifier
    assert SignerKey.parse(KEY.private_text()) == KEY
    assert len(KEY.verifier.public) == 1312


@needs_ml_dsa
def test_a_name_that_does_not_fit_is_refused(world):
    with pytest.raises(LogInvalid, match="255 bytes"):
        cosign(world.head().text(), replace(KEY, name="w" * 256), NOW)


@needs_ml_dsa
def test_a_witness_may_have_such_a_key(world, tmp_path):
    store = WitnessStore.create(tmp_path / "pq", KEY.name, ML_DSA_44)
    store.add_log(world.log_key.verifier)
    endpoint = witness_endpoint(str(tmp_path / "pq"))
    assert endpoint.key.kind == ML_DSA_44
    assert witness_endpoint(f"{endpoint.key}=https://w.example").key == endpoint.key


POLICY = """
version = 1
min_assurance = "SOFTWARE"
accept = ["pinned-operator"]
freshness = "witnesses"
[reference]
models = {{ river = "{digest}" }}
[pinned-operator]
keys = ["{digest}"]
[release]
keys = ["{digest}"]
[log]
key = "{log}"
[log.witnesses]
"Dora" = ["{witness}"]
"""


@needs_ml_dsa
def test_a_policy_names_it_as_a_witness_and_never_as_the_log(world):
    names = {"digest": "ab" * 32, "log": str(world.log_key.verifier)}
    policy = parse_policy(POLICY.format(witness=KEY.verifier, **names))
    assert policy.log.witnesses == (Witness("Dora", KEY.verifier),)
    with pytest.raises(ConfigurationError, match="type 0x06"):
        parse_policy(POLICY.format(witness=KEY.verifier, **{**names, "log": str(KEY.verifier)}))


def test_without_the_algorithm_it_is_said_and_nothing_passes(world, monkeypatch):
    """As with a cryptography whose OpenSSL is older than 3.5."""
    module = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.mldsa")
    data = cosigned(world) if mldsa.is_supported() else b""
    public = KEY.verifier if mldsa.is_supported() else None

    def absent(*_):
        raise UnsupportedAlgorithm("ML-DSA")

    monkeypatch.setattr(module.MLDSA44PublicKey, "from_public_bytes", absent)
    monkeypatch.setattr(module.MLDSA44PrivateKey, "from_seed_bytes", absent)
    assert not mldsa.is_supported()
    for attempt in (lambda: mldsa.sign(bytes(32), b""), lambda: mldsa.public_of(bytes(32))):
        with pytest.raises(LogInvalid, match="ml_dsa_unsupported"):
            attempt()
    if public is not None:
        with pytest.raises(LogInvalid, match="ml_dsa_unsupported") as caught:
            open_cosigned(data, policy_with(world, public), NOW)
        assert "upgrade cryptography" in caught.value.mend
