"""Frames: the named tampering cases, each at every position."""

from __future__ import annotations

import copy
import os
import pickle

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from overspill.errors import (
    DoesNotFit,
    StreamCorrupt,
    StreamTruncated,
    TransportError,
    UsageError,
)
from overspill.sealing import frames as module
from overspill.sealing.frames import (
    CLIENT,
    MAX_CONTENT_BYTES,
    MAX_FRAME_BYTES,
    MAX_FRAMES,
    SERVER,
    Frame,
    FrameOpener,
    FrameSealer,
    FrameType,
)
from overspill.sealing.schedule import FrameKeys

KEYS = FrameKeys(key=bytes(range(32)), nonce=bytes(range(12)))
ALTERED = "altered|no valid header|unknown type|has no place|not marked final"
contents = st.lists(st.binary(max_size=200), min_size=1, max_size=8)


def answer(texts: list[bytes], keys: FrameKeys = KEYS) -> list[bytes]:
    """A node's answer: events, then FINAL."""
    sealer = FrameSealer(keys, SERVER)
    frames = [sealer.seal(FrameType.EVENT, text) for text in texts]
    return [*frames, sealer.seal(FrameType.FINAL, sealer.transcript_sha256)]


def read(frames: list[bytes], keys: FrameKeys = KEYS, direction: bytes = SERVER) -> list[Frame]:
    """What a client makes of frames: all of them, or an error."""
    opener = FrameOpener(keys, direction)
    opened = [opener.open(frame) for frame in frames]
    opener.finish()
    opener.check_transcript(opened[-1].plaintext)
    return opened


@given(contents)
def test_frames_arrive_whole_and_in_order(texts):
    opened = read(answer(texts))
    assert [frame.plaintext for frame in opened[:-1]] == texts
    assert [frame.type for frame in opened] == [FrameType.EVENT] * len(texts) + [FrameType.FINAL]
    assert [frame.final for frame in opened] == [False] * len(texts) + [True]


def test_the_frame_that_is_due_is_named():
    """By what a lost stream is resumed: a frame that did not open is still due."""
    opener, frames = FrameOpener(KEYS, SERVER), answer([b"a", b"b"])
    assert opener.next_index == 0
    for index, frame in enumerate(frames):
        opener.open(frame)
        assert opener.next_index == index + 1
    with pytest.raises(StreamCorrupt):
        opener.open(frames[0])
    assert opener.next_index == len(frames)


@given(contents, st.data())
def test_t25_bit_flip(texts, data):
    frames = answer(texts)
    which = data.draw(st.integers(0, len(frames) - 1))
    at = data.draw(st.integers(0, 8 * len(frames[which]) - 1))
    flipped = bytearray(frames[which])
    flipped[at // 8] ^= 1 << at % 8
    with pytest.raises(StreamCorrupt, match=ALTERED):
        read([*frames[:which], bytes(flipped), *frames[which + 1 :]])


def test_t25_bit_flip_at_every_bit_of_a_frame():
    good = answer([b"token"])
    for at in range(8 * len(good[0])):
        flipped = bytearray(good[0])
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(StreamCorrupt, match=ALTERED):
            read([bytes(flipped), good[1]])


@given(contents, st.data())
def test_t26_drop(texts, data):
    frames = answer(texts)
    gone = data.draw(st.integers(0, len(frames) - 2))
    with pytest.raises(StreamCorrupt, match="not the next one"):
        read(frames[:gone] + frames[gone + 1 :])


@given(contents, st.data())
def test_t27_repeat(texts, data):
    frames = answer(texts)
    twice = data.draw(st.integers(0, len(frames) - 2))
    to = data.draw(st.integers(twice + 1, len(frames) - 1))
    with pytest.raises(StreamCorrupt, match="not the next one"):
        read([*frames[:to], frames[twice], *frames[to:]])


@given(st.lists(st.binary(max_size=80), min_size=2, max_size=8), st.data())
def test_t28_swap(texts, data):
    frames = answer(texts)
    first = data.draw(st.integers(0, len(frames) - 2))
    second = data.draw(st.integers(first + 1, len(frames) - 1))
    frames[first], frames[second] = frames[second], frames[first]
    with pytest.raises(StreamCorrupt, match="not the next one"):
        read(frames)


def test_t29_cut_before_final_at_every_position():
    frames = answer([b"token %d" % n for n in range(40)])
    for cut in range(len(frames)):
        opener = FrameOpener(KEYS, SERVER)
        for frame in frames[:cut]:
            opener.open(frame)
        with pytest.raises(StreamTruncated, match=f"after {cut} frames"):
            opener.finish()


def test_t29_cut_within_a_frame_at_every_position():
    frame = answer([b"token"])[0]
    for cut in range(len(frame)):
        with pytest.raises(StreamCorrupt, match=ALTERED):
            FrameOpener(KEYS, SERVER).open(frame[:cut])


def test_a_truncated_stream_is_no_transport_error():
    assert not issubclass(StreamTruncated, TransportError)
    assert not issubclass(StreamCorrupt, TransportError)


def test_t30_final_twice():
    frames = answer([b"token"])
    with pytest.raises(StreamCorrupt, match="after the final"):
        read([*frames, frames[-1]])


def test_t31_data_after_final():
    frames = answer([b"token"])
    with pytest.raises(StreamCorrupt, match="after the final"):
        read([*frames, frames[0]])


def test_t32_request_frame_reflected(ends):
    request = FrameSealer(ends.keys.request, CLIENT)
    frames = [request.seal(FrameType.AUTH, b"who"), request.seal(FrameType.BODY, b"x", final=True)]
    for opener in (
        FrameOpener(ends.keys.response(ends.response_nonce), SERVER),
        FrameOpener(ends.keys.request, SERVER),  # even under its own keys
    ):
        with pytest.raises(StreamCorrupt, match="not the next one"):
            opener.open(frames[1])


def test_t33_response_nonce_changed(ends):
    frames = answer([b"token"], ends.keys.response(ends.response_nonce))
    other = bytes([ends.response_nonce[0] ^ 1]) + ends.response_nonce[1:]
    with pytest.raises(StreamCorrupt, match="not the next one"):
        read(frames, ends.keys.response(other))


def test_t34_final_hash_wrong():
    sealer = FrameSealer(KEYS, SERVER)
    frames = [sealer.seal(FrameType.EVENT, b"token"), sealer.seal(FrameType.FINAL, bytes(32))]
    with pytest.raises(StreamCorrupt, match="FINAL's digest"):
        read(frames)


def test_the_transcript_tells_frames_apart_that_join_alike():
    def transcript(texts):
        sealer = FrameSealer(KEYS, SERVER)
        for text in texts:
            sealer.seal(FrameType.EVENT, text)
        return sealer.transcript_sha256

    assert transcript([b"ab", b"c"]) != transcript([b"a", b"bc"])


def test_the_final_flag_cannot_be_set_or_cleared():
    body = FrameSealer(KEYS, CLIENT)
    more, last = body.seal(FrameType.BODY, b"1"), body.seal(FrameType.BODY, b"2", final=True)
    for frame, flag in ((more, 1), (last, 0)):
        opener = FrameOpener(KEYS, CLIENT)
        if frame is last:
            opener.open(more)
        with pytest.raises(StreamCorrupt):
            opener.open(frame[:1] + bytes([flag]) + frame[2:])


def test_the_first_failure_is_for_good():
    frames = answer([b"token"])
    opener = FrameOpener(KEYS, SERVER)
    with pytest.raises(StreamCorrupt):
        opener.open(frames[1])
    with pytest.raises(StreamCorrupt, match="before this frame"):
        opener.open(frames[0])
    with pytest.raises(StreamCorrupt):
        opener.finish()


@pytest.mark.parametrize("size", [0, 1, 59, 60, 61, 124, 125, 1000])
def test_lengths_show_in_buckets_of_64_only(size):
    frame = FrameSealer(KEYS, SERVER).seal(FrameType.EVENT, bytes(size))
    assert (len(frame) - 2 - 16) % 64 == 0
    assert len(frame) - 18 - (size + 4) < 64


@pytest.mark.parametrize(
    "padded",
    [
        (3).to_bytes(4, "big") + b"abc" + bytes(56) + b"\x01",
        (3).to_bytes(4, "big") + b"abc" + bytes(57 + 64),
        (61).to_bytes(4, "big") + bytes(60),
        b"\xff\xff\xff\xff" + bytes(60),
        (3).to_bytes(4, "big") + b"abc" + bytes(58),
    ],
    ids=["not-zero", "a-bucket-too-many", "length-past-the-end", "huge-length", "no-bucket"],
)
def test_padding_has_one_form(padded):
    aad = b"ovs1" + SERVER + bytes(8) + bytes([FrameType.EVENT, 0])
    frame = bytes([FrameType.EVENT, 0]) + ChaCha20Poly1305(KEYS.key).encrypt(
        KEYS.nonce, padded, aad
    )
    with pytest.raises(StreamCorrupt, match="padding"):
        FrameOpener(KEYS, SERVER).open(frame)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"\x03\x02", "no valid header"),
        (b"\x09\x00", "unknown type 9"),
        (b"\x01\x00", "AUTH has no place here"),
        (b"\x03\x01", "EVENT has no place here"),
        (b"\x04\x00", "FINAL is not marked final"),
        (b"\x05\x00", "ERROR is not marked final"),
    ],
)
def test_a_header_of_no_frame_is_named(header, words):
    with pytest.raises(StreamCorrupt, match=words):
        FrameOpener(KEYS, SERVER).open(header + bytes(80))
    with pytest.raises(StreamCorrupt, match="no valid header"):
        FrameOpener(KEYS, SERVER).open(b"\x03\x00" + bytes(79))


def test_a_frame_is_what_the_protocol_says():
    """Opened by hand: nonce XOR index, and index, direction, type and end in the data beside."""
    nonce, aead = int.from_bytes(KEYS.nonce, "big"), ChaCha20Poly1305(KEYS.key)
    texts = [b"%d" % n for n in range(300)]
    for index, (frame, text) in enumerate(zip(answer(texts), texts, strict=False)):
        aad = b"ovs1S" + index.to_bytes(8, "big") + bytes((FrameType.EVENT, 0))
        opened = aead.decrypt((nonce ^ index).to_bytes(12, "big"), frame[2:], aad)
        assert opened == (len(text).to_bytes(4, "big") + text).ljust(64, b"\0")
        assert frame[:2] == aad[-2:]


def test_limits_are_reached_before_they_are_broken(monkeypatch):
    """A frame and a request of exactly the limit pass."""
    size = len(FrameSealer(KEYS, CLIENT).seal(FrameType.BODY, b""))
    monkeypatch.setattr(module, "MAX_FRAME_BYTES", size)
    monkeypatch.setattr(module, "MAX_REQUEST_BYTES", 2 * size)
    sealer, opener = FrameSealer(KEYS, CLIENT), FrameOpener(KEYS, CLIENT)
    for _ in range(2):
        opener.open(sealer.seal(FrameType.BODY, b""))
    with pytest.raises(DoesNotFit, match="request exceeds"):
        sealer.seal(FrameType.BODY, b"")


def test_a_wrong_transcript_breaks_the_stream():
    frames = answer([b"token"])
    opener = FrameOpener(KEYS, SERVER)
    for frame in frames:
        opener.open(frame)
    with pytest.raises(StreamCorrupt, match="digest"):
        opener.check_transcript(bytes(32))
    with pytest.raises(StreamCorrupt, match="before it closed"):
        opener.finish()


def test_a_frame_has_at_most_one_mebibyte():
    frame = FrameSealer(KEYS, SERVER).seal(FrameType.EVENT, bytes(MAX_CONTENT_BYTES))
    assert len(frame) <= MAX_FRAME_BYTES
    with pytest.raises(DoesNotFit, match="frame"):
        FrameSealer(KEYS, SERVER).seal(FrameType.EVENT, bytes(MAX_CONTENT_BYTES + 1))
    with pytest.raises(StreamCorrupt, match="limit"):
        FrameOpener(KEYS, SERVER).open(bytes([FrameType.EVENT, 0]) + bytes(MAX_FRAME_BYTES))


def test_a_request_has_at_most_16_mebibytes(monkeypatch):
    sealer, opener = FrameSealer(KEYS, CLIENT), FrameOpener(KEYS, CLIENT)
    piece = bytes(MAX_CONTENT_BYTES)
    for _ in range(16):
        opener.open(sealer.seal(FrameType.BODY, piece))
    with pytest.raises(DoesNotFit, match="request exceeds"):
        sealer.seal(FrameType.BODY, piece)
    monkeypatch.setattr(module, "MAX_REQUEST_BYTES", 1 << 30)
    excess = sealer.seal(FrameType.BODY, piece)
    monkeypatch.undo()
    with pytest.raises(StreamCorrupt, match="request exceeds"):
        opener.open(excess)


def test_a_stream_has_at_most_2_to_the_32_frames():
    sealer, opener = FrameSealer(KEYS, SERVER), FrameOpener(KEYS, SERVER)
    sealer._index = opener._index = MAX_FRAMES - 1
    opener.open(sealer.seal(FrameType.EVENT, b"the last one"))
    with pytest.raises(DoesNotFit, match="frames"):
        sealer.seal(FrameType.EVENT, b"one more")
    with pytest.raises(StreamCorrupt, match="frames"):
        opener.open(bytes(82))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3 * MAX_CONTENT_BYTES))
def test_a_long_body_goes_in_several_frames(size):
    body = os.urandom(16) * (size // 16) + bytes(size % 16)
    frames = FrameSealer(KEYS, CLIENT).seal_body(body)
    opener = FrameOpener(KEYS, CLIENT)
    opened = [opener.open(frame) for frame in frames]
    opener.finish()
    assert b"".join(frame.plaintext for frame in opened) == body
    assert [frame.final for frame in opened] == [False] * (len(opened) - 1) + [True]


@given(st.binary(max_size=400), st.sampled_from([CLIENT, SERVER]))
def test_garbage_raises_one_type(garbage, direction):
    with pytest.raises(StreamCorrupt):
        FrameOpener(KEYS, direction).open(garbage)


def test_nothing_is_sealed_after_the_end_or_out_of_place():
    sealer = FrameSealer(KEYS, SERVER)
    with pytest.raises(UsageError):
        sealer.seal(FrameType.AUTH, b"a node does not ask")
    with pytest.raises(UsageError):
        sealer.seal(FrameType.EVENT, b"an event is no end", final=True)
    sealer.seal(FrameType.ERROR, b"an error is one")
    with pytest.raises(UsageError, match="after its final"):
        sealer.seal(FrameType.EVENT, b"late")
    with pytest.raises(UsageError):
        FrameSealer(KEYS, b"X")


def test_no_index_is_sealed_twice_through_a_copy():
    sealer = FrameSealer(KEYS, SERVER)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(UsageError):
            attempt(sealer)
