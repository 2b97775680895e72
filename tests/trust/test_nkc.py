"""The node key configuration, byte for byte, and what is said of one that is not one."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest

from overspill.errors import EvidenceRejected, UsageError
from overspill.trust.nkc import DEV, PRODUCTION, NodeKeyConfig, qualifying_data, report_data

NKC = b"some configuration"
NONCE = bytes(range(32))


def of(byte: int, size: int = 32) -> bytes:
    return bytes([byte] * size)


GOOD = NodeKeyConfig(
    mode=PRODUCTION,
    kem_id=0x647A,
    kdf_id=0x0102,
    aead_id=0x0304,
    hpke_public_key=of(1, 40),
    receipt_public_key=of(2),
    not_before=0x0102030405060708,
    not_after=0x1112131415161718,
    release_id=of(3),
    models_digest=of(4),
    config_digest=of(5),
    gpu_claims_digest=of(6),
    boot_id=of(7, 16),
    freshness_anchor_sha256=of(8),
)

FIELDS = (
    ("the magic", b"OVSN"),
    ("the version", b"\x01"),
    ("the mode", b"\x00"),
    ("the KEM id", b"\x64\x7a"),
    ("the KDF id", b"\x01\x02"),
    ("the AEAD id", b"\x03\x04"),
    ("the length of the HPKE key", b"\x00\x28"),
    ("the HPKE key", of(1, 40)),
    ("the length of the receipt key", b"\x00\x20"),
    ("the receipt key", of(2)),
    ("not_before", bytes.fromhex("0102030405060708")),
    ("not_after", bytes.fromhex("1112131415161718")),
    ("the release id", of(3)),
    ("the models digest", of(4)),
    ("the config digest", of(5)),
    ("the GPU claims digest", of(6)),
    ("the boot id", of(7, 16)),
    ("the freshness anchor's digest", of(8)),
)
"""The layout as the protocol gives it, written down a second time."""


def whole(*changes: tuple[int, bytes]) -> bytes:
    fields = [data for _, data in FIELDS]
    for at, data in changes:
        fields[at] = data
    return b"".join(fields)


def malformed(data: bytes) -> str:
    with pytest.raises(EvidenceRejected) as caught:
        NodeKeyConfig.decode(data)
    error = caught.value
    assert (error.reason, error.step) == ("nkc_malformed", "1")
    assert error.expected == "a node key configuration"
    return error.actual


def test_the_layout_is_the_protocols():
    assert GOOD.encode() == whole()
    assert NodeKeyConfig.decode(whole()) == GOOD


@pytest.mark.parametrize("at", range(len(FIELDS)), ids=[name for name, _ in FIELDS])
def test_what_is_missing_is_named(at):
    name, data = FIELDS[at]
    start = sum(len(piece) for _, piece in FIELDS[:at])
    cut = whole()[: start + len(data) - 1]
    left = len(data) - 1
    assert malformed(cut) == f"{name} needs {len(data)} bytes at offset {start}, {left} are left"


def test_absent_digests_are_zeros():
    names = ("release_id", "gpu_claims_digest", "freshness_anchor_sha256")
    fields = {name: getattr(GOOD, name) for name in GOOD.__dataclass_fields__ if name not in names}
    assert NodeKeyConfig(**fields) == replace(GOOD, **dict.fromkeys(names, bytes(32)))


def test_the_mode_is_one_of_two():
    assert not GOOD.is_dev
    dev = replace(GOOD, mode=DEV)
    assert dev.is_dev
    assert NodeKeyConfig.decode(whole((2, b"\x01"))) == dev
    assert malformed(whole((2, b"\x02"))) == "mode 2 is neither production nor dev"


def test_another_magic_or_version_is_named():
    assert malformed(whole((0, b"OVSP"))) == "magic b'OVSP', version 1 is not OVSN version 1"
    assert malformed(whole((1, b"\x02"))) == "magic b'OVSN', version 2 is not OVSN version 1"


def test_what_follows_is_not_canonical():
    with pytest.raises(EvidenceRejected) as caught:
        NodeKeyConfig.decode(whole() + b"\0")
    error = caught.value
    assert (error.reason, error.step) == ("nkc_not_canonical", "1")
    assert (error.expected, error.actual) == ("its one canonical encoding", "another")


def keyed(hpke: bytes, receipt: bytes = of(2)) -> bytes:
    lengths = [len(key).to_bytes(2, "big") for key in (hpke, receipt)]
    return whole((6, lengths[0]), (7, hpke), (8, lengths[1]), (9, receipt))


@pytest.mark.parametrize("size", [1, 32, 1216, 2048])
def test_an_hpke_key_has_up_to_2048_bytes(size):
    config = replace(GOOD, hpke_public_key=of(9, size))
    assert config.encode() == keyed(of(9, size))
    assert NodeKeyConfig.decode(keyed(of(9, size))) == config


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (keyed(of(9, 2049)), "the HPKE key claims 2049 bytes, at most 2048 are allowed"),
        (keyed(b"k", of(9, 2049)), "the receipt key claims 2049 bytes, at most 2048 are allowed"),
        (keyed(b""), "a key has the wrong length"),
        (keyed(b"k", of(2, 31)), "a key has the wrong length"),
        (keyed(b"k", of(2, 33)), "a key has the wrong length"),
        (keyed(b"k", of(2, 2048)), "a key has the wrong length"),
    ],
)
def test_keys_of_other_lengths_are_refused(data, said):
    assert malformed(data) == said


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("release_id", 32),
        ("models_digest", 32),
        ("config_digest", 32),
        ("gpu_claims_digest", 32),
        ("freshness_anchor_sha256", 32),
        ("boot_id", 16),
        ("receipt_public_key", 32),
    ],
)
@pytest.mark.parametrize("more", [-1, 1])
def test_a_field_that_does_not_fit_is_not_written(name, size, more):
    with pytest.raises(UsageError) as caught:
        replace(GOOD, **{name: bytes(size + more)}).encode()
    assert str(caught.value) == f"A node key configuration's {name} has {size} bytes."


@pytest.mark.parametrize("size", [0, 2049])
def test_a_key_that_does_not_fit_is_not_written(size):
    with pytest.raises(UsageError) as caught:
        replace(GOOD, hpke_public_key=bytes(size)).encode()
    assert str(caught.value) == "An HPKE public key has 1 to 2048 bytes."


@pytest.mark.parametrize("nonce", [None, NONCE])
@pytest.mark.parametrize(
    ("dev", "label"), [(False, b"overspill/rd/v1"), (True, b"overspill/DEV-rd/v1")]
)
def test_evidence_binds_label_configuration_and_nonce(dev, label, nonce):
    stated = struct.pack(">32s", nonce or b"")
    bound = label + b"\0" + hashlib.sha256(NKC).digest() + stated
    assert report_data(NKC, nonce, dev) == hashlib.sha512(bound).digest()
    assert qualifying_data(NKC, nonce, dev) == hashlib.sha256(bound).digest()
