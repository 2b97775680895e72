"""What a bad road and a bad node do to a stream: found every time, and the text so far is kept."""

from __future__ import annotations

import dataclasses

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overspill.errors import (
    EvidenceRejected,
    InvalidRequest,
    KeyUnknown,
    OverspillError,
    ReceiptInvalid,
    StreamBroken,
    StreamCorrupt,
    StreamTruncated,
    TrustError,
)
from overspill.sealing.frames import FrameType
from overspill.sealing.receipt import ReceiptClaims, ReceiptKey, commitment
from overspill.testing import FakeEngine
from overspill.transport.memory import MemoryTransport, Taps
from overspill.types.chat import Chunk, Finish, FinishReason
from overspill.types.usage import Usage
from overspill.wire import plaintext
from overspill_cloud.sealed_stream import SealedStream
from overspill_cloud.streams import StreamLimits

pytestmark = pytest.mark.anyio

WORDS = "one two three four five"
ONE_BY_ONE = StreamLimits(max_queued_bytes=1)
"""Each chunk is a frame of its own, so that every run has the same frames."""


def flipped(frame: bytes, at: int = -1) -> bytes:
    changed = bytearray(frame)
    changed[at] ^= 1
    return bytes(changed)


async def _answer(engine, request):
    """(text, finish or None, error or None): everything that the app was given."""
    text, finish = "", None
    try:
        async for chunk in engine.generate(request):
            text, finish = text + chunk.text, chunk.finish
    except OverspillError as error:
        return error.partial, finish, error  # what came before it is never dropped
    return text, finish, None


async def _frames_of(cloud, here):
    """How many parts an untouched answer has, the response nonce included."""
    seen = []
    engine = await here.enrolled(taps=Taps(on_response=lambda i, f: seen.append(i) or (f,)))
    assert (await _answer(engine, cloud.ask()))[2] is None
    return len(seen)


# The road -------------------------------------------------------------------------------------


async def test_a_cut_is_found_at_every_position(cloud, tmp_path):
    async with cloud.world(tmp_path, FakeEngine(WORDS), streams=ONE_BY_ONE) as here:
        count = await _frames_of(cloud, here)
        for cut in range(count):
            taps = Taps(on_response=lambda i, f, cut=cut: (f,) if i < cut else ())
            text, finish, error = await _answer(await here.enrolled(taps=taps), cloud.ask())
            assert isinstance(error, StreamTruncated), cut
            assert finish is None
            assert WORDS.startswith(text)


@pytest.mark.parametrize("position", ["first byte", "second byte", "last byte"])
async def test_a_changed_byte_is_found_in_every_frame(cloud, tmp_path, position):
    at = {"first byte": 0, "second byte": 1, "last byte": -1}[position]
    async with cloud.world(tmp_path, FakeEngine(WORDS), streams=ONE_BY_ONE) as here:
        for bad in range(await _frames_of(cloud, here)):
            taps = Taps(on_response=lambda i, f, bad=bad: (flipped(f, at) if i == bad else f,))
            _, finish, error = await _answer(await here.enrolled(taps=taps), cloud.ask())
            assert isinstance(error, StreamCorrupt), bad
            assert finish is None


@pytest.mark.parametrize("change", ["drop", "repeat", "swap", "reflect"])
async def test_missing_repeated_swapped_and_reflected_frames_are_found(cloud, tmp_path, change):
    held, sent = [], []

    def on_response(index, frame):
        if index != 2:
            after, held[:] = list(held), []
            return (frame, *after)
        if change == "swap":
            held.append(frame)
        return {"drop": (), "repeat": (frame, frame), "swap": (), "reflect": sent[:1]}[change]

    taps = Taps(on_response=on_response, on_request=lambda _, f: sent.append(f) or (f,))
    async with cloud.world(tmp_path, FakeEngine(WORDS), streams=ONE_BY_ONE) as here:
        _, finish, error = await _answer(await here.enrolled(taps=taps), cloud.ask())
        assert isinstance(error, StreamCorrupt)
        assert finish is None


async def test_a_frame_after_the_end_is_found(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        taps = Taps(on_response=lambda i, f: (f, f) if i and f[0] == FrameType.FINAL else (f,))
        _, finish, error = await _answer(await here.enrolled(taps=taps), cloud.ask())
        assert isinstance(error, StreamCorrupt)
        assert finish is None


@pytest.mark.parametrize("change", ["flip", "drop", "repeat", "swap"])
async def test_a_changed_request_is_refused_under_the_seal(cloud, tmp_path, change):
    held = []

    def on_request(index, frame):
        if change == "flip":
            return (flipped(frame),)
        if change == "swap":
            held.append(frame)
            return held[::-1] if len(held) == 2 else ()
        return {"drop": () if index == 0 else (frame,), "repeat": (frame, frame)}[change]

    fake = FakeEngine()
    async with cloud.world(tmp_path, fake) as here:
        engine = await here.enrolled(taps=Taps(on_request=on_request))
        with pytest.raises(StreamCorrupt):
            await cloud.collect(engine, cloud.ask())
        assert fake.requests == []


async def test_a_changed_sealed_key_is_refused_before_anything_is_opened(cloud, tmp_path):
    def on_head(head):
        return dataclasses.replace(head, sealed_key=flipped(head.sealed_key))

    async with cloud.world(tmp_path) as here:
        with pytest.raises(InvalidRequest):
            await cloud.collect(await here.enrolled(taps=Taps(on_head=on_head)), cloud.ask())


async def test_another_configurations_digest_is_an_unknown_key(cloud, tmp_path):
    def on_head(head):
        return dataclasses.replace(head, nkc_sha256=flipped(head.nkc_sha256))

    async with cloud.world(tmp_path) as here:
        with pytest.raises(KeyUnknown):
            await cloud.collect(await here.enrolled(taps=Taps(on_head=on_head)), cloud.ask())


async def test_evidence_of_another_moment_is_refused(cloud, tmp_path):
    kept = []

    def on_bundle(bundle):
        kept.append(bundle)
        return kept[0]

    async with cloud.world(tmp_path) as here:
        taps = Taps(on_bundle=on_bundle)
        key = cloud.device_key()
        await here.enrolled(key=key)
        await here.client(key=key, taps=taps).attest()
        with pytest.raises(EvidenceRejected) as caught:
            await here.client(key=key, taps=taps).attest()
        assert caught.value.reason == "nonce_mismatch"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_edit_of_the_road_changes_an_answer_unseen(cloud, tmp_path_factory, data):
    """Whatever is dropped, repeated, delayed or altered: the whole answer, or a typed error."""
    edits = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, 9), st.sampled_from(["drop", "repeat", "hold", "flip", "cut"])
            ),
            max_size=4,
        )
    )
    offsets = data.draw(st.integers(0, 10_000))

    async def run():
        held = []

        def on_response(index, frame):
            out = [frame]
            for position, edit in edits:
                if position == index and edit == "flip":
                    out = [flipped(f, offsets % len(f)) for f in out]
                elif position == index and edit == "repeat":
                    out = out * 2
                elif position == index and edit == "hold":
                    held.extend(out)
                    out = []
                elif edit in ("drop", "cut") and (index == position or edit == "cut"):
                    out = out if index < position else []
            if out and held and len(edits) % 2:
                out, held[:] = [*out, *held], []
            return out

        async with cloud.world(tmp_path_factory.mktemp("state"), FakeEngine(WORDS)) as here:
            taps = Taps(on_response=on_response)
            text, finish, error = await _answer(await here.enrolled(taps=taps), cloud.ask())
            if error is None:
                assert (text, finish.reason) == (WORDS, FinishReason.STOP)
            else:
                assert isinstance(error, TrustError)
                assert WORDS.startswith(text)

    anyio.run(run)


# The node -------------------------------------------------------------------------------------


class Liar:
    """A node with genuine evidence that answers as ``script`` says."""

    def __init__(self, here, script):
        self._here = here
        self._script = script

    def __getattr__(self, name):
        return getattr(self._here.node, name)

    async def chat(self, head, frames):
        stream = SealedStream(head, self._here.keys.current())
        yield (stream.response_nonce,)
        request = await stream.read(frames)
        async for frame in self._script(stream, request):
            yield (frame,)


FINISH = Finish(FinishReason.STOP, Usage(3, 1), "echo")


def _claims(here, stream, request, text="yes", **changes):
    salt = stream.keys.commitment_salt
    honest = ReceiptClaims(
        nkc_sha256=stream.epoch.nkc_sha256,
        th=stream.keys.th,
        request_id=request.signature.request_id,
        request_commitment=commitment(salt, request.body),
        response_commitment=commitment(salt, text.encode()),
        model="echo",
        model_sha256=here.models["echo"].sha256,
        adapter="",
        prompt_tokens=3,
        completion_tokens=1,
        unix_s=int(here.clock()),
        finish_reason="stop",
    )
    return dataclasses.replace(honest, **changes)


async def _told_by(cloud, tmp_path, script):
    async with cloud.world(tmp_path) as here:
        node = Liar(here, lambda stream, request: script(here, stream, request))
        engine = await here.enrolled(MemoryTransport(node), idle_timeout_s=0.2)
        return await _answer(engine, cloud.ask())


async def test_the_liar_is_believed_while_it_tells_the_truth(cloud, tmp_path):
    async def honest(here, stream, request):
        yield stream.event(Chunk("yes"))
        yield stream.final(FINISH, stream.epoch.receipt_key.sign(_claims(here, stream, request)))

    text, finish, error = await _told_by(cloud, tmp_path, honest)
    assert (text, finish.reason, error) == ("yes", FinishReason.STOP, None)


@pytest.mark.parametrize(
    "lie",
    [
        {"model": "river"},
        {"model_sha256": b"\1" * 32},
        {"adapter": "tuned"},
        {"nkc_sha256": b"\1" * 32},
        {"th": b"\1" * 32},
        {"request_id": b"\1" * 16},
        {"request_commitment": b"\1" * 32},
        {"response_commitment": b"\1" * 32},
        {"completion_tokens": 999},
        {"prompt_tokens": 999},
        {"finish_reason": "length"},
    ],
    ids=lambda lie: next(iter(lie)),
)
async def test_a_receipt_that_is_for_something_else_is_refused(cloud, tmp_path, lie):
    async def script(here, stream, request):
        yield stream.event(Chunk("yes"))
        claims = _claims(here, stream, request, **lie)
        yield stream.final(FINISH, stream.epoch.receipt_key.sign(claims))

    text, finish, error = await _told_by(cloud, tmp_path, script)
    assert isinstance(error, ReceiptInvalid)
    assert (text, finish) == ("yes", None)


@pytest.mark.parametrize("forged", ["missing", "another key", "cut"])
async def test_a_receipt_that_the_node_did_not_sign_is_refused(cloud, tmp_path, forged):
    async def script(here, stream, request):
        yield stream.event(Chunk("yes"))
        claims = _claims(here, stream, request)
        receipt = stream.epoch.receipt_key.sign(claims)
        yield stream.final(
            FINISH,
            {
                "missing": b"",
                "another key": ReceiptKey.generate().sign(claims),
                "cut": receipt[:-1],
            }[forged],
        )

    assert isinstance((await _told_by(cloud, tmp_path, script))[2], ReceiptInvalid)


async def test_another_served_model_than_the_one_asked_for_is_refused(cloud, tmp_path):
    async with cloud.world(tmp_path, FakeEngine(name="echo"), FakeEngine(name="river")) as here:

        async def script(stream, request):
            yield stream.event(Chunk("yes"))
            receipt = stream.epoch.receipt_key.sign(_claims(here, stream, request))
            yield stream.final(FINISH, receipt)

        engine = await here.enrolled(MemoryTransport(Liar(here, script)))
        assert (await _answer(engine, cloud.ask(model="echo")))[2] is None
        assert isinstance((await _answer(engine, cloud.ask(model="river")))[2], ReceiptInvalid)


async def test_a_model_that_the_evidence_does_not_name_is_refused(cloud, tmp_path):
    async def script(here, stream, request):
        yield stream.event(Chunk("yes"))
        finish = dataclasses.replace(FINISH, model="echo-mini")
        claims = _claims(here, stream, request, model="echo-mini")
        yield stream.final(finish, stream.epoch.receipt_key.sign(claims))

    assert isinstance((await _told_by(cloud, tmp_path, script))[2], ReceiptInvalid)


async def test_a_wrong_transcript_hash_is_refused(cloud, tmp_path):
    async def script(here, stream, request):
        yield stream.event(Chunk("yes"))
        receipt = stream.epoch.receipt_key.sign(_claims(here, stream, request))
        final = plaintext.Final(FINISH, b"\1" * 32, receipt)
        yield stream._sealer.seal(FrameType.FINAL, plaintext.event_to_bytes(1, final))

    assert isinstance((await _told_by(cloud, tmp_path, script))[2], StreamCorrupt)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (FrameType.EVENT, plaintext.event_to_bytes(5, Chunk("gap"))),
        (FrameType.EVENT, plaintext.event_to_bytes(0, plaintext.Final(FINISH, b"", b""))),
        (FrameType.EVENT, plaintext.event_to_bytes(0, StreamBroken("as an event"))),
        (FrameType.FINAL, plaintext.event_to_bytes(0, Chunk("as the end"))),
        (FrameType.ERROR, plaintext.event_to_bytes(0, Chunk("as an error"))),
        (FrameType.BODY, plaintext.event_to_bytes(0, Chunk("as a body"))),
        (FrameType.EVENT, b"\xff\xff no message"),
    ],
    ids=["gap", "final", "error", "chunk as final", "chunk as error", "body", "garbage"],
)
async def test_an_event_out_of_place_is_refused(cloud, tmp_path, kind, data):
    async def script(here, stream, request):
        yield stream._sealer.seal(kind, data)

    text, _, error = await _told_by(cloud, tmp_path, script)
    assert isinstance(error, StreamCorrupt)
    assert text == ""


async def test_an_event_of_a_newer_version_is_ignored(cloud, tmp_path):
    async def script(here, stream, request):
        unknown = bytes([0x08, 0, 0x7A, 0])  # seq 0, and a field 15 that nobody knows
        yield stream._sealer.seal(FrameType.EVENT, unknown)
        yield stream._sealer.seal(FrameType.EVENT, plaintext.event_to_bytes(1, Chunk("yes")))
        final = plaintext.Final(
            FINISH,
            stream._sealer.transcript_sha256,
            stream.epoch.receipt_key.sign(_claims(here, stream, request)),
        )
        yield stream._sealer.seal(FrameType.FINAL, plaintext.event_to_bytes(2, final))

    text, finish, error = await _told_by(cloud, tmp_path, script)
    assert (text, error) == ("yes", None)
    assert finish is not None


async def test_silence_is_a_broken_stream(cloud, tmp_path):
    async def script(here, stream, request):
        yield stream.event(Chunk("yes"))
        await anyio.sleep_forever()

    text, finish, error = await _told_by(cloud, tmp_path, script)
    assert isinstance(error, StreamBroken)
    assert (text, finish) == ("yes", None)


async def test_a_road_that_stays_open_after_the_end_delays_nobody(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:

        async def script(stream, request):
            yield stream.event(Chunk("yes"))
            receipt = stream.epoch.receipt_key.sign(_claims(here, stream, request))
            yield stream.final(FINISH, receipt)
            await anyio.sleep_forever()

        road = MemoryTransport(Liar(here, script))
        engine = await here.enrolled(road, closing_timeout_s=0.1)
        assert (await _answer(engine, cloud.ask()))[2] is None


async def test_a_node_that_shuts_down_says_so_and_the_text_is_kept(cloud, tmp_path):
    async with cloud.world(tmp_path, FakeEngine(WORDS, delay_s=0.05)) as here:
        engine = await here.enrolled()
        stream = engine.generate(cloud.ask())
        text = (await anext(stream)).text
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(here.node.drain, 0.0)
            with pytest.raises(StreamBroken, match="shutting down") as caught:
                await _drained(stream)
        assert caught.value.partial.startswith(text)
        assert text


async def _drained(stream):
    async for _ in stream:
        pass
