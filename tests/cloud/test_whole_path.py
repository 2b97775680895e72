"""Prompt to confirmed answer through a real node: admission, streams, receipts."""

from __future__ import annotations

import dataclasses
import sqlite3

import anyio
import pytest

from overspill.errors import (
    BusyError,
    ConfigurationError,
    ContextOverflow,
    DeviceRejected,
    DoesNotFit,
    EngineDied,
    EngineError,
    EvidenceRejected,
    InvalidRequest,
    KeyUnknown,
    ModelInvalid,
    ModelNotFound,
    OutputInvalid,
)
from overspill.exchange import Exchange, ExchangeLimits, seal_request
from overspill.sealing.frames import CLIENT, FrameSealer, FrameType
from overspill.sealing.hpke import seal_secret
from overspill.sealing.receipt import open_receipt
from overspill.sealing.signing import sign_request
from overspill.testing import FakeEngine
from overspill.transport.base import ReadyFrames, SealedHead
from overspill.transport.memory import MemoryTransport, Taps
from overspill.trust.policy import default_policy
from overspill.types.chat import FinishReason
from overspill.wire import convert, plaintext
from overspill_cloud.admission import Admission, AdmissionLimits, Database
from overspill_cloud.room import Demand
from overspill_cloud.store import Device, Store
from overspill_cloud.streams import StreamLimits

pytestmark = pytest.mark.anyio


async def test_an_answer_comes_back_confirmed_by_a_receipt(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        engine = await here.enrolled()
        request = cloud.ask("grüße")
        chunks = await cloud.collect(engine, request)
        finish = chunks[-1].finish
        assert cloud.text_of(chunks) == "echo: grüße"
        assert finish.reason is FinishReason.STOP
        assert finish.model == "echo"
        record = engine.record(request.id)
        claims = open_receipt(finish.receipt, record.receipt.receipt_public_key)
        assert claims.model == "echo"
        assert claims.completion_tokens == finish.usage.completion_tokens > 0
        assert claims.nkc_sha256 == here.keys.current().nkc_sha256
        assert record.receipt.data == finish.receipt
        assert record.receipt.assurance == "NONE"


async def test_the_record_counts_every_byte_that_left(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        taps = Taps()
        engine = await here.enrolled(taps=taps)
        await engine.attest()
        taps.seen.clear()
        request = cloud.ask("hello")
        await cloud.collect(engine, request)
        assert engine.record(request.id).bytes_sent == sum(map(len, taps.seen))
        assert engine.bytes_sent(request.id) == engine.record(request.id).bytes_sent
        assert engine.bytes_sent("another") == 0


async def test_the_default_policy_refuses_a_development_node_and_sends_nothing(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        taps = Taps()
        engine = await here.enrolled(policy=default_policy(), taps=taps)
        with pytest.raises(EvidenceRejected):
            await cloud.collect(engine, cloud.ask("secret"))
        assert taps.seen == []


async def test_a_device_that_is_not_enrolled_is_refused(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        with pytest.raises(DeviceRejected, match="not enrolled") as caught:
            await cloud.collect(here.client(), cloud.ask())
        assert caught.value.reason == "not_enrolled"
        assert "code" in caught.value.mend


async def test_a_code_enrols_one_device_once(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        code = here.code()
        assert await here.client().enroll(code) > here.clock()
        with pytest.raises(DeviceRejected) as caught:
            await here.client().enroll(code)
        assert caught.value.reason == "code"


async def test_an_expired_code_enrols_nobody(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        code = here.store.new_code(int(here.clock()) + 60)
        here.clock.offset_s = 61
        with pytest.raises(DeviceRejected) as caught:
            await here.client().enroll(code)
        assert caught.value.reason == "code"


async def test_a_revoked_device_is_refused_at_once_and_never_comes_back(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        key = cloud.device_key()
        engine = await here.enrolled(key=key)
        await cloud.collect(engine, cloud.ask())
        here.store.revoke(key.thumbprint, int(here.clock()))
        for attempt in (cloud.collect(engine, cloud.ask()), engine.enroll(here.code())):
            with pytest.raises(DeviceRejected) as caught:
                await attempt
            assert caught.value.reason == "revoked"


async def test_an_expired_device_is_refused(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        key = cloud.device_key()
        await here.client(key=key).enroll(here.code(), not_after_unix=int(here.clock()) + 600)
        here.clock.offset_s = 601
        with pytest.raises(DeviceRejected) as caught:
            await cloud.collect(here.client(key=key), cloud.ask())
        assert caught.value.reason == "expired"


async def _send_as_is(here, key, outgoing):
    """Send sealed bytes exactly as they are; the finish reason, or why they were refused."""
    result = await here.client(key=key).attest()
    models = {name: model.sha256 for name, model in here.models.items()}
    exchange = Exchange(MemoryTransport(here.node), result, models, outgoing, ExchangeLimits())
    try:
        await exchange.begin()
        return [chunk async for chunk in exchange.chunks()][-1].finish.reason.value
    except DeviceRejected as error:
        return error.reason
    finally:
        await exchange.aclose()


async def _sealed(here, key, request, skew_s=0.0):
    result = await here.client(key=key).attest()
    body = plaintext.request_to_bytes(request)
    return seal_request(result, key, body, int((here.clock() + skew_s) * 1000))


@pytest.mark.parametrize(
    ("skew_s", "outcome"), [(92, "clock"), (-92, "clock"), (88, "stop"), (-88, "stop")]
)
async def test_a_clock_may_be_off_by_90_seconds(cloud, tmp_path, skew_s, outcome):
    async with cloud.world(tmp_path) as here:
        key = cloud.device_key()
        await here.enrolled(key=key)
        outgoing = await _sealed(here, key, cloud.ask(), skew_s)
        assert await _send_as_is(here, key, outgoing) == outcome


async def test_a_request_is_answered_once(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        key = cloud.device_key()
        await here.enrolled(key=key)
        outgoing = await _sealed(here, key, cloud.ask())
        assert await _send_as_is(here, key, outgoing) == "stop"
        # The same bytes again get the same bytes again; nothing is computed or counted twice.
        assert await _send_as_is(here, key, outgoing) == "stop"
        ended = [event for event in here.events() if event["event"] == "StreamEnded"]
        assert len(ended) == 1


async def test_what_is_no_longer_kept_is_a_replay(cloud, tmp_path):
    streams = StreamLimits(max_kept_bytes=0)
    async with cloud.world(tmp_path, streams=streams) as here:
        key = cloud.device_key()
        await here.enrolled(key=key)
        outgoing = await _sealed(here, key, cloud.ask())
        assert await _send_as_is(here, key, outgoing) == "stop"
        assert await _send_as_is(here, key, outgoing) == "replay"


async def test_the_replay_window_survives_a_restart(cloud, tmp_path):
    key, clock = cloud.device_key(), cloud.Clock()
    signature = sign_request(
        key, th=b"t" * 32, body=b"body", request_id=b"r" * 16, unix_ms=int(clock() * 1000)
    )

    async def admit():
        database = Database(Store(tmp_path))
        try:
            admission = Admission(database, clock, AdmissionLimits())
            (await admission.admit(signature, th=b"t" * 32, body=b"body")).release()
        finally:
            database.close()

    store = Store(tmp_path)
    device = Device(key.thumbprint, key.public_der, "", 0, 1 << 40)
    store.enrol(device, store.new_code(1 << 40), int(clock()))
    store.close()
    await admit()
    with pytest.raises(DeviceRejected) as caught:
        await admit()
    assert caught.value.reason == "replay"


async def test_a_signature_over_another_body_is_refused(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        key = cloud.device_key()
        await here.enrolled(key=key)
        signed = await _sealed(here, key, cloud.ask("pay 1"))
        signature = sign_request(
            key, th=signed.keys.th, body=b"pay 1", request_id=b"i" * 16, unix_ms=signed_ms(here)
        )
        sealer = FrameSealer(signed.keys.request, CLIENT)
        auth = plaintext.auth_to_bytes(plaintext.Auth(*dataclasses.astuple(signature)))
        frames = (sealer.seal(FrameType.AUTH, auth), *sealer.seal_body(b"pay 1000"))
        outgoing = dataclasses.replace(signed, frames=frames)
        assert await _send_as_is(here, key, outgoing) == "signature"


def signed_ms(here):
    return int(here.clock() * 1000)


async def test_an_unknown_model_is_refused_with_the_names_there_are(cloud, tmp_path):
    async with cloud.world(tmp_path, FakeEngine(name="brook"), FakeEngine(name="river")) as here:
        engine = await here.enrolled()
        with pytest.raises(ModelNotFound, match="brook, river"):
            await cloud.collect(engine, cloud.ask(model="sea"))


async def test_the_request_picks_among_several_models(cloud, tmp_path):
    brook, river = FakeEngine("small", name="brook"), FakeEngine("large", name="river")
    async with cloud.world(tmp_path, brook, river) as here:
        engine = await here.enrolled()
        for name, answer in (("river", "large"), ("brook", "small"), (None, "small")):
            chunks = await cloud.collect(engine, cloud.ask(model=name))
            assert cloud.text_of(chunks) == answer
            assert chunks[-1].finish.model == (name or "brook")
        assert [card.name for card in await engine.cards()] == ["brook", "river"]


@pytest.mark.parametrize(
    "error",
    [
        ContextOverflow(900, 200, 1024, "fake"),
        BusyError("No room.", retry_after_s=3.0),
        InvalidRequest("Not this.", param="stop"),
    ],
)
async def test_an_engines_error_arrives_typed_with_its_numbers_and_the_text_so_far(
    cloud, tmp_path, error
):
    failing = FakeEngine("one two three", error=error, error_after=2)
    async with cloud.world(tmp_path, failing) as here:
        engine = await here.enrolled()
        with pytest.raises(type(error)) as caught:
            await cloud.collect(engine, cloud.ask())
        assert caught.value.message == error.message
        assert caught.value.partial == "one two"
        for name in ("prompt_tokens", "max_tokens", "context", "retry_after_s"):
            assert getattr(caught.value, name, None) == getattr(error, name, None)


async def test_sessions_share_no_prefix_cache_and_no_ids(cloud, tmp_path):
    fake = FakeEngine()
    async with cloud.world(tmp_path, fake) as here:
        engine, request = await here.enrolled(), cloud.ask()
        await cloud.collect(engine, request)
        await cloud.collect(engine, request)
        seen = [(r.app, r.id) for r in fake.requests]
        assert len(set(seen)) == 2
        assert request.id not in {part for pair in seen for part in pair}


async def test_a_restarted_node_is_verified_again_and_answers(cloud, tmp_path):
    async with cloud.world(tmp_path) as before, cloud.world(tmp_path) as after:
        road = MemoryTransport(before.node)
        engine = await before.enrolled(road)
        await cloud.collect(engine, cloud.ask())
        road._node = after.node  # the same state folder, another boot: other keys
        assert cloud.text_of(await cloud.collect(engine, cloud.ask("again"))) == "echo: again"
        assert (await engine.attest()).nkc_sha256 == after.keys.current().nkc_sha256


async def test_a_relay_to_another_node_gets_nothing(cloud, tmp_path):
    async with cloud.world(tmp_path / "a") as honest, cloud.world(tmp_path / "b") as other:

        class Relay(MemoryTransport):
            """Shows one node's evidence, and sends the requests to another node."""

            def chat(self, head, frames):
                return MemoryTransport(other.node).chat(head, frames)

        engine = await honest.enrolled(Relay(honest.node))
        with pytest.raises(KeyUnknown):
            await cloud.collect(engine, cloud.ask())


async def test_a_full_node_refuses_before_it_opens_anything(cloud, tmp_path):
    async with cloud.world(tmp_path, admission=AdmissionLimits(max_streams=1)) as here:
        release = here.admission.room.take(b"d" * 32, Demand("echo"))
        nkc = here.keys.current().nkc_sha256
        for refused in (BusyError, InvalidRequest):
            with pytest.raises(refused):
                await anext(here.node.chat(SealedHead(nkc, b"no key at all"), ReadyFrames([])))
            release()


async def test_a_full_node_sheds_and_takes_requests_again(cloud, tmp_path):
    limits = AdmissionLimits(max_streams=1)
    async with cloud.world(tmp_path, cloud.engine(token_delay_s=0.02), admission=limits) as here:
        first, second = await here.enrolled(), await here.enrolled()
        stream = first.generate(cloud.ask("a long answer"))
        await anext(stream)
        with pytest.raises(BusyError, match="QUEUE_FULL") as caught:
            await cloud.collect(second, cloud.ask())
        assert caught.value.retry_after_s == limits.retry_after_s
        async for _ in stream:
            pass
        await _until(lambda: not here.admission.active)
        assert await cloud.collect(second, cloud.ask())


async def test_one_device_cannot_take_every_stream(cloud, tmp_path):
    limits = AdmissionLimits(max_streams=8, max_streams_per_device=1)
    async with cloud.world(tmp_path, cloud.engine(token_delay_s=0.02), admission=limits) as here:
        first, second = await here.enrolled(), await here.enrolled()
        stream = first.generate(cloud.ask("a long answer"))
        await anext(stream)
        with pytest.raises(BusyError, match="QUOTA"):
            await cloud.collect(first, cloud.ask())
        assert await cloud.collect(second, cloud.ask())
        await stream.aclose()


async def test_leaving_a_stream_frees_the_engine(cloud, tmp_path):
    fake = FakeEngine("word " * 1000, delay_s=0.01)
    # A grace that no test would sit out: only the explicit Cancel can end the stream.
    streams = StreamLimits(detach_grace_s=3600)
    async with cloud.world(tmp_path, fake, streams=streams) as here:
        engine = await here.enrolled()
        stream = engine.generate(cloud.ask())
        await anext(stream)
        await stream.aclose()
        await _until(lambda: not here.admission.active)
        assert here.events()[-1]["outcome"] == "cancelled"


async def test_a_lost_connection_cancels_after_the_grace(cloud, tmp_path):
    fake = FakeEngine("word " * 1000, delay_s=0.01)
    async with cloud.world(tmp_path, fake) as here:

        class NoCancel(MemoryTransport):
            async def cancel(self, stream_id, mac):
                """The road is gone: nothing arrives."""

        engine = await here.enrolled(NoCancel(here.node))
        stream = engine.generate(cloud.ask())
        await anext(stream)
        await stream.aclose()
        await _until(lambda: not here.admission.active)
        assert here.events()[-1]["outcome"] == "detached"


async def test_nobody_else_can_cancel_a_stream(cloud, tmp_path):
    async with cloud.world(tmp_path, cloud.engine(token_delay_s=0.02)) as here:
        engine = await here.enrolled()
        stream = engine.generate(cloud.ask("still here"))
        text = (await anext(stream)).text
        for running in list(here.node._live._answers):
            await here.node.cancel(running, b"m" * 32)
        async for chunk in stream:
            text += chunk.text
        assert text == "echo: still here"


async def test_a_node_that_is_busy_says_so(cloud, tmp_path):
    started = anyio.Event()

    class Slow(FakeEngine):
        async def _generate(self, request):
            await started.wait()
            async for chunk in super()._generate(request):
                yield chunk

    frames = []

    def tap(index, frame):
        frames.append(index)
        if index == 4:  # nonce, Accepted, and three heartbeats
            started.set()
        return (frame,)

    streams = StreamLimits(heartbeat_s=0.01)
    async with cloud.world(tmp_path, Slow("at last"), streams=streams) as here:
        engine = await here.enrolled(taps=Taps(on_response=tap))
        chunks = await cloud.collect(engine, cloud.ask())
        assert cloud.text_of(chunks) == "at last"


async def test_every_use_is_in_the_ledger_and_stays_there(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        key = cloud.device_key()
        engine = await here.enrolled(key=key)
        finish = (await cloud.collect(engine, cloud.ask()))[-1].finish
        await _until(here.store.usage)
        [line] = here.store.usage()
        assert line["thumbprint"] == key.thumbprint
        assert line["completion_tokens"] == finish.usage.completion_tokens
        assert line["minute_unix"] % 60 == 0
        assert line["outcome"] == "stop"
        with sqlite3.connect(here.store.path) as db:
            for change in ("DELETE FROM usage_ledger", "UPDATE usage_ledger SET outcome='x'"):
                with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                    db.execute(change)


async def test_all_clients_get_the_same_evidence(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        first = await MemoryTransport(here.node).get_bundle()
        second = await MemoryTransport(here.node).get_bundle()
        one, other = (convert.bundle_to_proto(b).SerializeToString() for b in (first, second))
        assert one == other


async def test_two_devices_send_the_same_shape(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        shapes, keys = [], [cloud.device_key(), cloud.device_key()]
        for key, words in zip(keys, ("call mum", "pay rent"), strict=True):
            taps = Taps()
            engine = await here.enrolled(key=key, taps=taps)
            await engine.attest()
            taps.seen.clear()
            await cloud.collect(engine, cloud.ask(words))
            sent = b"".join(taps.seen)
            shapes.append(([len(part) for part in taps.seen], taps.seen[0]))
            for secret in (key.thumbprint, key.public_der, key.public_der[-32:], words.encode()):
                assert secret not in sent
        assert shapes[0] == shapes[1]  # equal lengths, equal node key: nothing else is in clear


async def test_the_log_says_nothing_about_who_or_what(cloud, tmp_path):
    async with cloud.world(tmp_path) as here:
        key = cloud.device_key()
        request = cloud.ask("CANARY-7431")
        await cloud.collect(await here.enrolled(key=key), request)
        await _until(lambda: here.events()[-1]["event"] == "StreamEnded")
        log = here.log.getvalue()
        for secret in ("CANARY", key.thumbprint.hex(), request.id, here.client().address):
            assert secret not in log
        assert all(event["minute_unix"] % 60 == 0 for event in here.events())
        assert here.events()[-1]["prompt_tokens_le"] in (4**n for n in range(12))


async def test_an_unexpected_failure_is_sealed_without_its_text(cloud, tmp_path):
    class Leaky(FakeEngine):
        async def count_prompt_tokens(self, request):
            raise RuntimeError(f"cannot count {request.messages[0].content}")

    async with cloud.world(tmp_path, Leaky()) as here:
        with pytest.raises(EngineError) as caught:
            await cloud.collect(await here.enrolled(), cloud.ask("CANARY-7432"))
        assert str(caught.value) == "The node's engine failed at this request. Try again."
        assert "CANARY" not in here.log.getvalue()


@pytest.mark.parametrize("kind", [EngineError, EngineDied, OutputInvalid, DoesNotFit])
async def test_an_engines_own_words_stay_at_the_node(cloud, tmp_path, kind):
    """They may be of another device's request: a batch that fails is told to all in it."""
    told = kind("The worker is gone: it said CANARY-7433.", mend="See /var/lib/CANARY-7433.")
    failing = FakeEngine("one two three", error=told, error_after=2)
    async with cloud.world(tmp_path, failing) as here:
        with pytest.raises(kind, match="The node's") as caught:
            await cloud.collect(await here.enrolled(), cloud.ask())
        assert type(caught.value) is kind
        assert caught.value.partial == "one two"
        assert "CANARY" not in repr(vars(caught.value)) + here.log.getvalue()


async def test_what_is_the_nodes_own_is_not_told(cloud, tmp_path):
    errors = (
        ConfigurationError(f"{tmp_path} cannot be used."),
        ModelInvalid(f"{tmp_path} is truncated."),
    )
    for error in errors:
        async with cloud.world(tmp_path, FakeEngine(error=error)) as here:
            with pytest.raises(EngineError) as caught:
                await cloud.collect(await here.enrolled(), cloud.ask())
            assert str(tmp_path) not in str(caught.value)


async def test_requests_that_never_arrive_hold_a_bounded_place(cloud, tmp_path):
    streams = StreamLimits(max_arriving=2)
    async with cloud.world(tmp_path, streams=streams) as here:
        engine = await here.enrolled()
        result = await engine.attest()

        async def nothing():
            await anyio.sleep_forever()
            yield b""

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                secret = seal_secret(result)
                stuck = here.node.chat(SealedHead(result.nkc_sha256, secret.sealed_key), nothing())
                await anext(stuck)
                tasks.start_soon(anext, stuck)
            with pytest.raises(BusyError, match="arriving"):
                await cloud.collect(engine, cloud.ask())
            tasks.cancel_scope.cancel()
        assert await cloud.collect(engine, cloud.ask())


async def test_a_request_that_takes_too_long_to_arrive_is_refused(cloud, tmp_path):
    streams = StreamLimits(request_timeout_s=0.05)
    async with cloud.world(tmp_path, streams=streams) as here:

        class Stalled(MemoryTransport):
            async def _outgoing(self, frames):
                await anyio.sleep_forever()
                yield b""

        engine = await here.enrolled(Stalled(here.node))
        with pytest.raises(InvalidRequest, match="in time"):
            await cloud.collect(engine, cloud.ask())


async def _until(condition):
    """Give other tasks their turn until something is so; the test's own limit ends a hang."""
    while not condition():  # noqa: ASYNC110 - any condition, not one that signals
        await anyio.sleep(0.005)
