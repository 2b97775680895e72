"""tlog-proof: one spelling, and every malformed one refused."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import LogInvalid
from overspill.trust.log.proof import TlogProof

hashes = st.binary(min_size=32, max_size=32)
CHECKPOINT = b"origin\n1\nroot\n\n\xe2\x80\x94 origin sig\n"
GOOD = TlogProof(7, (bytes(32), bytes(range(32))), CHECKPOINT, b"extra data")


@given(
    st.integers(0, 2**63 - 1),
    st.lists(hashes, max_size=63),
    st.none() | st.binary(max_size=100),
)
def test_proofs_round_trip(index, path, extra):
    proof = TlogProof(index, tuple(path), CHECKPOINT, extra)
    assert TlogProof.parse(proof.encode()) == proof


def test_it_looks_as_specified():
    lines = GOOD.encode().decode().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1] == "extra ZXh0cmEgZGF0YQ=="
    assert lines[2] == "index 7"
    assert lines[3] == "A" * 43 + "="
    assert lines[5] == ""
    assert GOOD.encode().endswith(b"\n\n" + CHECKPOINT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"c2sp.org/tlog-proof@v1",
        b"c2sp.org/tlog-proof@v1\n\n" + CHECKPOINT,
        GOOD.encode().replace(b"@v1", b"@v2"),
        GOOD.encode().replace(b"\n", b"\r\n"),
        GOOD.encode().replace(b"index 7", b"index 07"),
        GOOD.encode().replace(b"index 7", b"index -7"),
        GOOD.encode().replace(b"index 7", b"index"),
        GOOD.encode().replace(b"index 7\n", b""),
        GOOD.encode().replace(b"extra ", b"extra  "),
        GOOD.encode().replace(b"==\nindex", b"=\nindex"),
        GOOD.encode().replace(b"A=\n", b"A\n", 1),
        GOOD.encode().replace(b"A=\n", b"B=\n", 1),
        b"\xff" + GOOD.encode(),
        replace(GOOD, path=(bytes(32),) * 64).encode(),
        replace(GOOD, extra=bytes(128 << 10)).encode(),
    ],
)
def test_a_malformed_proof_is_refused(data):
    with pytest.raises(LogInvalid) as caught:
        TlogProof.parse(data)
    assert caught.value.reason == "log_malformed"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_proof_or_refused(data):
    for candidate in (data, b"c2sp.org/tlog-proof@v1\n" + data):
        with contextlib.suppress(LogInvalid):
            TlogProof.parse(candidate)
