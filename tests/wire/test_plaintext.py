"""What travels inside sealed frames: there and back, and nothing but one error for garbage."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import BusyError, InvalidRequest, OverspillError
from overspill.types.chat import Chunk, Finish, FinishReason, Message, Request
from overspill.types.usage import Usage
from overspill.wire import plaintext
from overspill.wire.v1 import chat_pb2

EVENTS = [
    Chunk("grüße", (1, 2)),
    Chunk(),
    plaintext.Accepted("river", 3, 4),
    plaintext.Heartbeat(7),
    plaintext.Migrate("drain"),
    plaintext.Final(
        Finish(FinishReason.LENGTH, Usage(1, 2), "river", receipt=b"r"), b"h" * 32, b"r"
    ),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_an_event_comes_back_with_its_number(event):
    assert plaintext.event_from_bytes(plaintext.event_to_bytes(9, event)) == (9, event)


def test_an_error_comes_back_typed():
    error = BusyError("Full.", mend="Wait.", retry_after_s=2.0)
    seq, back = plaintext.event_from_bytes(plaintext.event_to_bytes(0, error))
    assert seq == 0
    assert isinstance(back, BusyError)
    assert (back.message, back.mend, back.retry_after_s) == ("Full.", "Wait.", 2.0)


@pytest.mark.parametrize(
    "detail", [{"exit_code": 0}, {"code": "ok"}, {"partial": "words"}, {"as_dict": 1}, {"n": [1]}]
)
def test_a_peer_sets_nothing_of_an_error_that_is_ours(detail):
    message = chat_pb2.ChatEvent()
    message.error.code, message.error.message = "busy", "Full."
    message.error.detail_json = json.dumps(detail)
    _, error = plaintext.event_from_bytes(message.SerializeToString())
    assert isinstance(error, BusyError)
    assert (error.code, error.exit_code, error.partial) == ("busy", 7, "")
    assert error.as_dict() == {"code": "busy", "message": "Full.", "mend": ""}
    assert not hasattr(error, "n")


def test_the_request_side_comes_back():
    auth = plaintext.Auth(b"i" * 16, 1 << 40, b"t" * 32, 3, b"grant", b"s" * 64)
    assert plaintext.auth_from_bytes(plaintext.auth_to_bytes(auth)) == auth
    enrolment = plaintext.Enrolment(b"der", "code", 12, "laptop")
    assert plaintext.enrolment_from_bytes(plaintext.enrolment_to_bytes(enrolment)) == enrolment
    enrolled = plaintext.Enrolled(b"t" * 32, 99)
    assert plaintext.enrolled_from_bytes(plaintext.enrolled_to_bytes(enrolled)) == enrolled


def test_app_and_privacy_floor_stay_on_the_device():
    request = Request((Message("user", "hi"),), app="com.example.diary")
    data = plaintext.request_to_bytes(request)
    assert b"diary" not in data
    assert b"attested" not in data
    assert plaintext.request_from_bytes(data).messages == request.messages


@given(st.binary(max_size=200))
def test_garbage_raises_one_kind_of_error(data):
    for parse in (
        plaintext.auth_from_bytes,
        plaintext.request_from_bytes,
        plaintext.enrolment_from_bytes,
        plaintext.enrolled_from_bytes,
        plaintext.event_from_bytes,
        plaintext.cards_from_bytes,
    ):
        try:
            parse(data)
        except OverspillError as error:
            assert type(error) is InvalidRequest  # noqa: PT017 - it may also pass
