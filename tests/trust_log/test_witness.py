"""A witness never cosigns a fork: its answers, its memory, and the protocol over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import ConfigurationError, ConnectFailed, LogInvalid, UsageError
from overspill.releasing.witness_http import serving_witness, submit
from overspill.releasing.witness_store import WitnessStore
from overspill.trust.log.cosignature import cosignature_time
from overspill.trust.log.merkle import consistency_proof, hashes_of
from overspill.trust.log.note import ED25519, Note, NoteSignature, SignerKey
from overspill.trust.log.witness import SIZE_TYPE, AddCheckpoint

NOW = 1_800_000_000


@pytest.fixture
def store(tmp_path, world) -> WitnessStore:
    made = WitnessStore.create(tmp_path / "witness", "witness.example/w1")
    made.add_log(world.log_key.verifier)
    return WitnessStore(tmp_path / "witness", clock=lambda: NOW)


def request(world, old: int, size: int | None = None) -> bytes:
    """The log's own request: grow from ``old`` to ``size`` entries."""
    head = world.head(size)
    proof = consistency_proof(old, head.size, hashes_of(world.leaves())) if old else ()
    checkpoint = world.checkpoint(head, witnesses=())
    return AddCheckpoint(old, proof, checkpoint).encode()


def cosigned_at(store: WitnessStore, body: bytes, answer_body: bytes) -> int:
    note = Note.parse(AddCheckpoint.parse(body).checkpoint)
    line = NoteSignature.parse(answer_body.decode().removesuffix("\n"))
    return cosignature_time(note, line, store.key.verifier)


def test_it_cosigns_what_grows(store, world):
    for old, size in ((0, 1), (1, 1), (1, 2), (2, 2)):
        body = request(world, old, size)
        answer = store.add_checkpoint(body)
        assert answer.status == 200, answer.body
        assert cosigned_at(store, body, answer.body) == NOW


def test_it_remembers_over_a_restart(store, world, tmp_path):
    store.add_checkpoint(request(world, 0))
    again = WitnessStore(tmp_path / "witness")
    answer = again.add_checkpoint(request(world, 0))
    assert (answer.status, answer.body, answer.content_type) == (409, b"2\n", SIZE_TYPE)


def test_it_never_cosigns_a_fork(store, world):
    assert store.add_checkpoint(request(world, 0)).status == 200
    fork = type(world)(entries=[b"another", b"history"])
    answer = store.add_checkpoint(request(fork, 2))
    assert answer.status == 409
    assert answer.content_type != SIZE_TYPE
    fork.entries.append(b"longer")
    assert store.add_checkpoint(request(fork, 2)).status == 422
    assert store.add_checkpoint(request(fork, 0)).body == b"2\n"
    assert store.add_checkpoint(request(world, 2)).status == 200


def test_it_never_goes_back(store, world):
    store.add_checkpoint(request(world, 0, 2))
    answer = store.add_checkpoint(request(world, 1, 1))
    assert (answer.status, answer.body) == (409, b"2\n")


def test_refusals_have_the_specifications_statuses(store, world, key_of):
    stranger = type(world)(log_key=key_of("other.example/log", ED25519))
    other_origin = world.checkpoint(
        type(world.head())("other.example/log", 1, bytes(32)), witnesses=()
    )
    good = AddCheckpoint.parse(request(world, 0))
    cases = {
        AddCheckpoint(0, (), other_origin).encode(): 404,
        request(stranger, 0): 403,
        AddCheckpoint(3, (), good.checkpoint).encode(): 400,
        AddCheckpoint(0, (bytes(32),), good.checkpoint).encode(): 422,
        AddCheckpoint(1, (), good.checkpoint).encode(): 409,
        b"": 400,
        b"old 0\n\n": 400,
        b"old 00\n\n" + good.checkpoint: 400,
        b"new 0\n\n" + good.checkpoint: 400,
        b"old 0\nnot base64\n\n" + good.checkpoint: 400,
        b"old 0\n" + b"A" * 43 + b"=\n" + good.checkpoint: 400,
        b"old 0\n" + (b"A" * 43 + b"=\n") * 64 + b"\n" + good.checkpoint: 400,
        b"\xff" + request(world, 0): 400,
        b"old 0\n\n" + b"x" * (80 << 10): 400,
    }
    for body, status in cases.items():
        assert store.add_checkpoint(body).status == status, (status, body[:80])
    assert store.add_checkpoint(request(world, 0)).status == 200


@given(st.integers(0, 2**63 - 1), st.lists(st.binary(min_size=32, max_size=32), max_size=63))
def test_requests_round_trip(old, proof):
    body = AddCheckpoint(old, tuple(proof), b"origin\n1\nroot\n\nsignature\n")
    assert AddCheckpoint.parse(body.encode()) == body


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(data):
    for candidate in (data, b"old 1\n" + data):
        with contextlib.suppress(LogInvalid):
            AddCheckpoint.parse(candidate)


def test_of_requests_at_the_same_time_each_follows_the_one_before(store, world, tmp_path):
    """Two that both extend size 1: one is cosigned, the other is told of it."""
    store.add_checkpoint(request(world, 0, 1))
    world.entries += [b"more"]
    answers: list[int] = []

    def ask(size: int) -> None:
        mine = WitnessStore(tmp_path / "witness")
        answers.append(mine.add_checkpoint(request(world, 1, size)).status)

    threads = [threading.Thread(target=ask, args=(size,)) for size in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 409]


# Its folder --------------------------------------------------------------------------------------


def test_a_second_witness_in_the_same_folder_is_refused(store, tmp_path):
    with pytest.raises(UsageError):
        WitnessStore.create(tmp_path / "witness", "another")


def test_a_log_keeps_its_key(store, world, key_of):
    store.add_log(world.log_key.verifier)
    with pytest.raises(UsageError, match="by another key"):
        store.add_log(key_of("x", ED25519).verifier, world.log_key.name)


@pytest.mark.parametrize("name", ["", "with space", "with+plus"])
def test_a_name_that_no_note_can_carry(tmp_path, name):
    with pytest.raises(UsageError):
        WitnessStore.create(tmp_path, name)


def test_state_and_key_have_to_be_closed_to_others(store, world, tmp_path):
    for name in ("witness.sqlite", "witness.key"):
        path = tmp_path / "witness" / name
        path.chmod(0o644)
        with pytest.raises(ConfigurationError, match="open to others"):
            WitnessStore(tmp_path / "witness").add_checkpoint(request(world, 0))
        path.chmod(0o600)


def test_damaged_state_is_no_new_start(store, world, tmp_path):
    store.add_checkpoint(request(world, 0))
    (tmp_path / "witness/witness.sqlite").write_bytes(b"damaged" * 1000)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        store.add_checkpoint(request(world, 0))


@pytest.mark.parametrize("text", [None, "nonsense", "PRIVATE+KEY+x"])
def test_a_folder_without_a_key_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "witness.key").write_text(text)
        os.chmod(tmp_path / "witness.key", 0o600)
    with pytest.raises(ConfigurationError):
        WitnessStore(tmp_path)


# HTTP --------------------------------------------------------------------------------------------


def test_over_http(store, world):
    with serving_witness(store, "127.0.0.1:0") as prefix:
        body = request(world, 0)
        answer = submit(prefix, body)
        assert answer.status == 200
        assert cosigned_at(store, body, answer.body) == NOW
        conflict = submit(prefix + "/", body)
        assert (conflict.status, conflict.body) == (409, b"2\n")
        assert conflict.content_type == SIZE_TYPE
    with pytest.raises(ConnectFailed, match="does not answer"):
        submit(prefix, body)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/other", {"Content-Length": "0"}, 404),
        ("POST", "/add-checkpoint", {"Content-Length": "999999999"}, 400),
        ("POST", "/add-checkpoint", {"Content-Length": "-1"}, 400),
        ("POST", "/add-checkpoint", {"Transfer-Encoding": "chunked"}, 400),
        ("GET", "/add-checkpoint", {}, 501),
    ],
)
def test_http_that_it_does_not_speak(store, method, path, headers, status):
    with serving_witness(store, "127.0.0.1:0") as prefix:
        connection = http.client.HTTPConnection(prefix.removeprefix("http://"), timeout=10)
        connection.putrequest(method, path)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()


def test_one_connection_may_ask_twice(store, world):
    with serving_witness(store, "127.0.0.1:0") as prefix:
        connection = http.client.HTTPConnection(prefix.removeprefix("http://"), timeout=10)
        for old in (0, 2):
            connection.request("POST", "/add-checkpoint", request(world, old))
            answer = connection.getresponse()
            assert answer.status == 200
            assert answer.read()
        connection.close()


def test_a_stranger_is_told_no_path(store, world, tmp_path):
    (tmp_path / "witness/witness.sqlite").chmod(0o644)
    with serving_witness(store, "127.0.0.1:0") as prefix:
        answer = submit(prefix, request(world, 0))
    assert answer.status == 500
    assert str(tmp_path).encode() not in answer.body


@pytest.mark.parametrize("listen", ["", "nonsense", "127.0.0.1", ":80", "127.0.0.1:x"])
def test_an_address_that_is_none(store, listen):
    with pytest.raises(UsageError), serving_witness(store, listen):
        raise AssertionError("it does not get here")


def test_an_address_that_cannot_be_had(store):
    with serving_witness(store, "127.0.0.1:0") as prefix:
        taken = prefix.removeprefix("http://")
        with pytest.raises(ConfigurationError), serving_witness(store, taken):
            raise AssertionError("it does not get here")
    with pytest.raises(ConfigurationError), serving_witness(store, "127.0.0.1:99999"):
        raise AssertionError("it does not get here")


@pytest.mark.parametrize("prefix", ["ftp://127.0.0.1", "file:///etc/passwd", "127.0.0.1:80"])
def test_only_http_is_asked(prefix):
    with pytest.raises(UsageError):
        submit(prefix, b"")


def test_a_witness_key_has_its_own_kind(store):
    assert isinstance(store.key, SignerKey)
    assert store.key.verifier.kind != ED25519
    assert Path(str(store.key.verifier)).name
