"""Signed notes and checkpoints: others' vectors, round trips, and every malformed one refused."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import LogInvalid
from overspill.trust.log.checkpoint import Checkpoint, open_checkpoint
from overspill.trust.log.encoding import decode_decimal, encode_base64
from overspill.trust.log.merkle import EMPTY_ROOT
from overspill.trust.log.note import (
    COSIGNATURE_V1,
    ED25519,
    MAX_SIGNATURES,
    Note,
    NoteSignature,
    SignerKey,
    VerifierKey,
    sign_note,
)

names = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20).filter(
    lambda name: "+" not in name and not any(c.isspace() for c in name)
)
lines = st.text(st.characters(exclude_categories=("C",)), max_size=40)
seeds = st.binary(min_size=32, max_size=32)
ROOT = bytes(range(32))


def malformed(parse, value) -> LogInvalid:
    with pytest.raises(LogInvalid) as caught:
        parse(value)
    assert caught.value.reason == "log_malformed", str(caught.value)
    return caught.value


# Others' vectors ---------------------------------------------------------------------------------


def test_others_notes_are_judged_as_they_say(vectors: Path):
    raw = json.loads((vectors / "tlog" / "signed_note.json").read_text())
    keys = {name: VerifierKey.parse(text) for name, text in raw["vkeys"].items()}
    for case in raw["cases"]:
        known = [keys[name] for name in case["keys"]]
        try:
            verified = Note.parse(case["note"].encode()).verify(known)
        except LogInvalid:
            assert not case["ok"], case["name"]
        else:
            assert case["ok"], case["name"]
            assert [key.name for key in verified] == case["verified"]


def test_a_real_checkpoint_of_gos_checksum_database(vectors: Path):
    raw = json.loads((vectors / "tlog" / "sumdb_checkpoint.json").read_text())
    key = VerifierKey.parse(raw["vkey"])
    signed = open_checkpoint(raw["checkpoint"].encode(), raw["origin"], key)
    assert signed.size == 35225469
    assert signed.note.encode() == raw["checkpoint"].encode()
    assert signed.checkpoint.text() == signed.note.text
    with pytest.raises(LogInvalid) as caught:
        open_checkpoint(raw["checkpoint"].encode(), key.name, key)
    assert caught.value.reason == "log_origin"


# Keys --------------------------------------------------------------------------------------------


@given(names, seeds, st.sampled_from([ED25519, COSIGNATURE_V1]))
def test_keys_have_one_text_form(name, seed, kind):
    key = SignerKey(name, kind, seed)
    assert VerifierKey.parse(str(key.verifier)) == key.verifier
    assert SignerKey.parse(key.private_text()) == key
    assert encode_base64(seed) not in repr(key)


def test_a_keys_kind_is_part_of_its_id():
    seed = bytes(32)
    plain, witness = (SignerKey("a", kind, seed).verifier for kind in (ED25519, COSIGNATURE_V1))
    assert plain.public == witness.public
    assert plain.key_id != witness.key_id


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[1:],
        lambda text: text.replace("+", "-", 1),
        lambda text: text.replace("name+", "name+0", 1),
        lambda text: text + "A",
        lambda text: text[:-4],
        lambda text: "na me" + text[4:],
        lambda text: text[:-1] + "*",
        lambda text: text.replace("name", "nome"),
        lambda text: "",
    ],
)
def test_a_damaged_key_is_refused(change):
    key = SignerKey.generate("name", ED25519)
    malformed(VerifierKey.parse, change(str(key.verifier)))
    malformed(SignerKey.parse, "PRIVATE+KEY+" + change(key.private_text()[12:]))
    malformed(SignerKey.parse, str(key.verifier))


def test_keys_of_other_algorithms_are_refused():
    for kind, size in ((0x02, 32), (0x06, 32), (0x01, 1312), (ED25519, 31), (ED25519, 33)):
        key = VerifierKey("name", kind, bytes(size))
        malformed(VerifierKey.parse, str(key))


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u00a0b", "a\nb", "\x07"])
def test_a_name_that_no_note_can_carry(name):
    malformed(lambda n: SignerKey.generate(n, ED25519), name)


# Notes -------------------------------------------------------------------------------------------


@given(
    st.lists(lines, min_size=1, max_size=5), st.lists(names, min_size=1, max_size=4, unique=True)
)
def test_notes_round_trip(text_lines, signer_names):
    text = "".join(f"{line}\n" for line in text_lines)
    keys = [SignerKey(name, ED25519, bytes([n] * 32)) for n, name in enumerate(signer_names)]
    note = sign_note(text, *keys)
    again = Note.parse(note.encode())
    assert again == note
    assert again.verify([key.verifier for key in keys]) == tuple(key.verifier for key in keys)


def good_note() -> bytes:
    return sign_note("some text\n", SignerKey("name", ED25519, bytes(32))).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"text\n\n",
        b"\xff\n\n" + good_note().split(b"\n\n")[1],
        good_note()[:-1],
        good_note() + b"\n",
        good_note() + b"more\n",
        good_note().replace(b"some", b"so\x07e"),
        good_note().replace(b"\n\n", b"\n\r\n"),
        good_note().replace("— ".encode(), b"- "),
        good_note().replace(b"name ", b"name  "),
        good_note().replace(b"name ", b"name"),
        b"text\n\n" + "— name AAAAAA==\n".encode(),
        b"text\n\n" + "— name AAAA\n".encode(),
        b"text\n\n" + "— name !!!!\n".encode(),
        b"text\n\n" + "— name AAAAAB==\n".encode(),
        b"text\n\n" + "— näme ÄAAA\n".encode(),
        b"text\n\n" + "— name AAAAAAA=\n".encode() * (MAX_SIGNATURES + 1),
        b"x" * (65 << 10),
    ],
)
def test_a_malformed_note_is_refused(data):
    malformed(Note.parse, data)


def test_the_signatures_follow_the_last_blank_line():
    note = sign_note("first\n\nsecond\n", SignerKey("name", ED25519, bytes(32)))
    assert Note.parse(note.encode()).text == "first\n\nsecond\n"


def test_a_text_without_its_newline_is_not_signed():
    malformed(lambda text: sign_note(text, SignerKey("name", ED25519, bytes(32))), "text")


def test_a_known_key_has_to_have_signed_and_rightly():
    key, other = (SignerKey("name", ED25519, bytes([n] * 32)) for n in (1, 2))
    note = sign_note("text\n", key)
    assert note.verify([other.verifier, key.verifier]) == (key.verifier,)
    with pytest.raises(LogInvalid) as caught:
        note.verify([other.verifier])
    assert caught.value.reason == "note_unsigned"
    forged = Note("other text\n", note.signatures)
    with pytest.raises(LogInvalid) as caught:
        forged.verify([key.verifier])
    assert caught.value.reason == "note_signature"


def test_a_signature_over_no_valid_key_is_false():
    line = sign_note("text\n", SignerKey("name", ED25519, bytes(32))).signatures[0]
    assert not VerifierKey("name", ED25519, bytes(31)).is_valid(line.signature, b"text\n")


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_refused_by_one_type(data):
    for parse in (Note.parse, lambda d: NoteSignature.parse(d.decode("latin-1"))):
        with contextlib.suppress(LogInvalid):
            parse(data)


# Checkpoints -------------------------------------------------------------------------------------


@given(
    lines.filter(bool), st.integers(1, 2**63 - 1), seeds, st.lists(lines.filter(bool), max_size=3)
)
def test_checkpoints_round_trip(origin, size, root, extensions):
    head = Checkpoint(origin, size, root, tuple(extensions))
    assert Checkpoint.parse(head.text()) == head


@pytest.mark.parametrize(
    "text",
    [
        "",
        "origin\n1\n",
        f"origin\n01\n{encode_base64(ROOT)}\n",
        f"origin\n-1\n{encode_base64(ROOT)}\n",
        f"origin\n1_0\n{encode_base64(ROOT)}\n",
        f"origin\n٣\n{encode_base64(ROOT)}\n",
        f"origin\n{2**63}\n{encode_base64(ROOT)}\n",
        f"origin\n{'9' * 5000}\n{encode_base64(ROOT)}\n",
        f"origin\n0\n{encode_base64(ROOT)}\n",
        f"origin\n1\n{encode_base64(ROOT[1:])}\n",
        f"origin\n1\n{encode_base64(ROOT)[:-1]}\n",
        f"origin\n1\n{encode_base64(ROOT)} \n",
        f"\n1\n{encode_base64(ROOT)}\n",
        f"origin\n1\n{encode_base64(ROOT)}\n\nmore\n",
    ],
)
def test_a_malformed_checkpoint_is_refused(text):
    malformed(Checkpoint.parse, text)


def test_an_empty_tree_has_the_empty_root():
    head = Checkpoint("origin", 0, EMPTY_ROOT)
    assert Checkpoint.parse(head.text()) == head


def test_a_checkpoint_counts_for_its_log_and_key_alone(world, key_of):
    data = world.checkpoint()
    open_checkpoint(data, world.log_key.name, world.log_key.verifier)
    with pytest.raises(LogInvalid) as caught:
        open_checkpoint(data, "other.example/log", world.log_key.verifier)
    assert caught.value.reason == "log_origin"
    with pytest.raises(LogInvalid) as caught:
        open_checkpoint(data, world.log_key.name, key_of("other", ED25519).verifier)
    assert caught.value.reason == "note_unsigned"


def test_decimals_have_one_spelling():
    assert decode_decimal("0", "a number") == 0
    assert decode_decimal(str(2**63 - 1), "a number") == 2**63 - 1
    for text in ("", "00", "+1", "1 ", " 1", "1.0", "0x1", "¹"):
        malformed(lambda t: decode_decimal(t, "a number"), text)
