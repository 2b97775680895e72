"""Witnesses' cosignatures and the quorum of operators."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import LogInvalid
from overspill.trust.log.cosignature import (
    CLOCK_SKEW_S,
    Witness,
    cosign,
    cosignature_time,
    open_cosigned,
)
from overspill.trust.log.note import COSIGNATURE_V1, ED25519, Note, SignerKey

NOW = 1_800_000_000


def refused(data, policy, reason: str, now: int = NOW) -> LogInvalid:
    with pytest.raises(LogInvalid) as caught:
        open_cosigned(data, policy, now)
    assert caught.value.reason == reason, str(caught.value)
    return caught.value


def with_line(data: bytes, line) -> bytes:
    note = Note.parse(data)
    return Note(note.text, (*note.signatures, line)).encode()


@given(st.integers(0, 2**63 - 1))
def test_a_cosignature_tells_its_time(unix_s):
    key = SignerKey("witness.example/w1", COSIGNATURE_V1, bytes(32))
    text = "origin\n1\nroot\n"
    line = cosign(text, key, unix_s)
    assert cosignature_time(Note(text, (line,)), line, key.verifier) == unix_s
    moved = replace(line, signature=(unix_s ^ 1).to_bytes(8, "big") + line.signature[8:])
    with pytest.raises(LogInvalid):
        cosignature_time(Note(text, (moved,)), moved, key.verifier)


def test_a_quorum_and_its_newest_time(world):
    policy = world.policy().log
    opened = open_cosigned(world.checkpoint(), policy, NOW)
    assert opened.times == tuple((name, NOW - 120) for name in ("Alice", "Bob", "Carol"))
    later = cosign(world.head().text(), world.witnesses["Bob"], NOW - 5)
    assert open_cosigned(with_line(world.checkpoint(), later), policy, NOW).newest == NOW - 5


def test_t57_one_witness_short(world):
    policy = world.policy().log
    open_cosigned(world.checkpoint(witnesses=("Alice", "Carol")), policy, NOW)
    error = refused(world.checkpoint(witnesses=("Alice",)), policy, "witness_quorum")
    assert error.actual == "Alice"
    refused(world.checkpoint(witnesses=()), policy, "not_cosigned")


def test_t57_three_witnesses_of_one_operator_count_as_one(world):
    """The same three keys, but one hand."""
    data = world.checkpoint()
    policy = world.policy().log
    one_hand = tuple(Witness("Alice", witness.key) for witness in policy.witnesses)
    refused(data, replace(policy, witnesses=one_hand), "witness_quorum")


def test_t57_one_witness_twice_counts_once(world):
    policy = world.policy().log
    data = world.checkpoint(witnesses=("Alice",))
    again = cosign(world.head().text(), world.witnesses["Alice"], NOW - 1)
    refused(with_line(data, again), policy, "witness_quorum")


def test_t58_cosigned_by_the_logs_own_key(world):
    """Under any name: the key decides."""
    policy = world.policy().log
    for name in (world.log_key.name, "alice.example/w", "somebody"):
        own = SignerKey(name, COSIGNATURE_V1, world.log_key.seed)
        line = cosign(world.head().text(), own, NOW)
        refused(with_line(world.checkpoint(), line), policy, "cosigned_by_log")


def test_t58_cosigned_in_the_future(world):
    policy = world.policy().log
    open_cosigned(world.checkpoint(at=NOW + CLOCK_SKEW_S), policy, NOW)
    refused(world.checkpoint(at=NOW + CLOCK_SKEW_S + 1), policy, "cosignature_from_future")


def test_a_false_cosignature_of_a_known_witness_refuses_all(world):
    data = world.checkpoint()
    note = Note.parse(data)
    for change in (
        lambda s: s[:-1] + bytes([s[-1] ^ 1]),
        lambda s: s[:-1],
        lambda s: b"\xff" + s[1:],
    ):
        wrong = replace(note.signatures[1], signature=change(note.signatures[1].signature))
        changed = replace(note, signatures=(*note.signatures[:1], wrong, *note.signatures[2:]))
        refused(changed.encode(), world.policy().log, "cosignature_invalid")


def test_strangers_are_passed_over(world, key_of):
    policy = world.policy().log
    stranger = cosign(world.head().text(), key_of("stranger", COSIGNATURE_V1), NOW + 10**6)
    opened = open_cosigned(with_line(world.checkpoint(), stranger), policy, NOW)
    assert len(opened.times) == 3


def test_a_plain_signature_is_no_cosignature(world):
    """A witness's key that signs the text plainly has not said when it saw it."""
    policy = world.policy().log
    note = Note.parse(world.checkpoint(witnesses=("Alice",)))
    bob = world.witnesses["Bob"]
    plain = SignerKey(bob.name, ED25519, bob.seed)
    line = replace(cosign(note.text, bob, NOW), signature=plain.sign(note.text.encode()))
    data = Note(note.text, (*note.signatures, line)).encode()
    refused(data, policy, "cosignature_invalid")


def test_without_witnesses_there_is_no_time(world):
    policy = replace(world.policy().log, witnesses=(), quorum=0)
    opened = open_cosigned(world.checkpoint(), policy, NOW)
    assert opened.newest is None
