"""What one client can take of a node, known or not: bounded memory, bounded calls, and no word of
the node's own."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import grpc
import grpc.aio
import pytest

from overspill.errors import ConfigurationError, InvalidRequest
from overspill.exchange import Exchange, seal_request
from overspill.testing import Answer, FakeEngine
from overspill.transport.grpc import GrpcTransport
from overspill.transport.memory import MemoryTransport
from overspill.types.chat import Image, Message, Request, Tool, ToolCall
from overspill.wire import plaintext
from overspill.wire.v1 import sealed_pb2, sealed_pb2_grpc, status_pb2, trust_pb2, trust_pb2_grpc
from overspill_cloud import events, health
from overspill_cloud.answer import KEPT_BYTES, LiveAnswer
from overspill_cloud.room import BYTES_PER_TOKEN, IMAGE_TOKENS, kv_demand
from overspill_cloud.sealed_stream import SealedRequest
from overspill_cloud.server import MAX_CONNECTION_CALLS, start_server
from overspill_cloud.streams import Run, StreamLimits

pytestmark = pytest.mark.anyio
WAIT_S = 20.0
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))


@asynccontextmanager
async def _served(here):
    log = events.EventLog(here.clock, here.log)
    running, address = await start_server(here.node, log, "127.0.0.1:0", None)
    try:
        yield address
    finally:
        await running.stop(0)


async def _until(condition):
    with anyio.fail_after(WAIT_S):
        while not condition():  # noqa: ASYNC110 - any condition, not one that signals
            await anyio.sleep(0.005)


def _answers(here):
    return list(here.node._live._answers.values())


# Memory ---------------------------------------------------------------------------------------


def _held_by_the_node():
    """Bodies as they were opened, and requests under the node's own names for them."""
    gc.collect()
    objects = gc.get_objects()
    bodies = [one for one in objects if isinstance(one, SealedRequest)]
    return bodies + [one for one in objects if isinstance(one, Request) and one.app == one.id]


async def test_a_request_is_let_go_of_with_its_end_while_its_answer_is_kept(cloud, tmp_path):
    refused = Answer(error=InvalidRequest("Not this schema.", param="json_schema"))
    fake = FakeEngine([refused, Answer("an answer")])
    async with cloud.world(tmp_path, fake) as here:
        engine = await here.enrolled()
        with pytest.raises(InvalidRequest, match="Not this schema"):
            await cloud.collect(engine, cloud.ask("x" * 100_000))
        await cloud.collect(engine, cloud.ask("y" * 100_000))
        fake.requests.clear()
        await _until(lambda: len(here.node._live._kept) == 2)
        assert len(_answers(here)) == 2
        assert _held_by_the_node() == []


async def test_a_request_is_let_go_of_when_nobody_came_for_the_end(cloud, tmp_path):
    fake = FakeEngine(error=InvalidRequest("No."), error_after=0)
    async with cloud.world(tmp_path, fake) as here:
        key = cloud.device_key()
        engine = await here.enrolled(key=key)
        outgoing = await _sealed(here, engine, key, cloud.ask("x" * 100_000))
        frames = MemoryTransport(here.node).chat(outgoing.head, outgoing.each_frame())
        await anext(frames)
        await anext(frames)
        await frames.aclose()
        del frames
        await _until(lambda: here.node._live._kept)
        fake.requests.clear()
        assert _held_by_the_node() == []


@pytest.mark.parametrize("is_left", [False, True], ids=["read to its end", "left"])
async def test_an_answer_is_gone_with_its_last_reader_on_both_ends(cloud, tmp_path, is_left):
    """Not when Python next looks for cycles, which may be after thousands of others."""

    def alive():
        kinds = (LiveAnswer, Run, Exchange)
        return [one for one in gc.get_objects() if isinstance(one, kinds)]

    fake = FakeEngine("one two three", delay_s=0.01)
    async with cloud.world(tmp_path, fake, streams=StreamLimits(ring_s=0.05)) as here:
        engine = await here.enrolled()
        gc.collect()
        gc.disable()
        try:
            stream = engine.generate(cloud.ask())
            await anext(stream)
            assert len(alive()) == 3
            if not is_left:
                assert [chunk async for chunk in stream][-1].finish
            await stream.aclose()
            del stream
            await _until(lambda: not alive())
        finally:
            gc.enable()


async def test_what_is_kept_is_counted_with_what_each_answer_takes_by_itself(cloud, tmp_path):
    streams = StreamLimits(max_kept_bytes=3 * KEPT_BYTES + 10_000)
    async with cloud.world(tmp_path, FakeEngine("w"), streams=streams) as here:
        engine = await here.enrolled()
        for _ in range(5):
            await cloud.collect(engine, cloud.ask())
        await _until(lambda: not here.node.active)
        assert len(_answers(here)) == 3


async def _sealed(here, engine, key, request):
    result = await engine.attest()
    body = plaintext.request_to_bytes(request)
    return seal_request(result, key, body, int(here.clock() * 1000))


# Readers that do not read ---------------------------------------------------------------------


@pytest.mark.parametrize("kilobytes", [160, 700])
async def test_who_reads_nothing_any_more_is_gone(cloud, tmp_path, kilobytes):
    """Also where the engine had ended long before, and nothing was stopped for it: an answer larger
    than a first message and the window together, and smaller than the queue."""
    fake = FakeEngine(" ".join(["w" * 10_239] * (kilobytes // 10)), context=1 << 20)
    streams = StreamLimits(stall_timeout_s=0.3, detach_grace_s=0.0, gather_s=0.0)
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(cloud.world(tmp_path, fake, streams=streams))
        address = await stack.enter_async_context(_served(here))
        key = cloud.device_key()
        outgoing = await _sealed(here, await here.enrolled(key=key), key, cloud.ask())
        channel = grpc.aio.insecure_channel(address, options=SMALL_WINDOW)
        await stack.enter_async_context(channel)
        head = sealed_pb2.RequestHead(
            nkc_sha256=outgoing.head.nkc_sha256, sealed_key=outgoing.head.sealed_key, bundles=True
        )
        call = sealed_pb2_grpc.SealedStub(channel).Chat()
        await call.write(sealed_pb2.SealedFrame(head=head, more=outgoing.frames))
        await call.done_writing()
        assert (await call.read()).response_nonce
        await _until(lambda: _answers(here) and not _answers(here)[0].is_read)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read_on(call)
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert "InternalError" not in here.log.getvalue()


async def _read_on(call):
    with anyio.fail_after(WAIT_S):
        while await call.read() is not grpc.aio.EOF:
            pass


async def test_who_reads_slowly_is_not_gone(cloud, tmp_path):
    fake = FakeEngine("a b c d e f g h", delay_s=0.1)
    streams = StreamLimits(stall_timeout_s=0.3)
    async with cloud.world(tmp_path, fake, streams=streams) as here, _served(here) as address:
        engine = await here.enrolled(GrpcTransport(address))
        assert cloud.text_of(await cloud.collect(engine, cloud.ask())) == "a b c d e f g h"


# Room -----------------------------------------------------------------------------------------

LONG = "x" * 9000
BARE = Request((Message("user", ""),), max_tokens=1)


@pytest.mark.parametrize(
    "request_",
    [
        Request((Message("user", LONG),), max_tokens=1),
        Request((Message("user", ""),), prefix=LONG, max_tokens=1),
        Request((Message("assistant", "", (ToolCall("1", "f", LONG),)),), max_tokens=1),
        Request((Message("user", ""),), tools=(Tool("f", LONG),), max_tokens=1),
        Request((Message("user", ""),), tools=(Tool("f", "", {"title": LONG}),), max_tokens=1),
    ],
    ids=["content", "prefix", "arguments", "description", "parameters"],
)
def test_all_that_stands_in_a_prompt_takes_room(request_):
    assert 0 <= kv_demand(request_) - kv_demand(BARE) - len(LONG) // BYTES_PER_TOKEN < 10


def test_an_image_takes_room_whatever_its_bytes_and_an_answers_schema_takes_none():
    images = tuple(Image(bytes(size), "image/png") for size in (1, 1 << 20))
    seen = Request((Message("user", "", images=images),), max_tokens=1)
    assert kv_demand(seen) == kv_demand(BARE) + 2 * IMAGE_TOKENS
    held = Request((Message("user", ""),), json_schema={"title": LONG}, max_tokens=1)
    assert kv_demand(held) == kv_demand(BARE)


# Calls ----------------------------------------------------------------------------------------


def _watch(channel):
    return channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=status_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=status_pb2.HealthCheckResponse.FromString,
    )(status_pb2.HealthCheckRequest())


async def test_watchers_are_so_many_and_ask_the_engine_together(cloud, tmp_path):
    class Counting(FakeEngine):
        asked = 0

        async def health(self):
            self.asked += 1
            return await super().health()

    fake = Counting()
    async with (
        cloud.world(tmp_path, fake) as here,
        _served(here) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        watches = [_watch(channel) for _ in range(health.MAX_WATCHERS)]
        for watch in watches:
            assert (await watch.read()).status == health.SERVING
        assert fake.asked < health.MAX_WATCHERS / 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _watch(channel).read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        watches.pop().cancel()
        await _until_watched(channel)
        await here.node.drain(0.0)
        assert (await watches[0].read()).status == status_pb2.HealthCheckResponse.NOT_SERVING


async def _until_watched(channel):
    """The place of a watcher who left is free soon."""
    with anyio.fail_after(WAIT_S):
        while True:
            try:
                return await _watch(channel).read()
            except grpc.aio.AioRpcError:
                await anyio.sleep(0.01)


async def test_a_connection_is_told_how_many_calls_it_may_have(cloud, tmp_path):
    """The server's first HTTP/2 frame, SETTINGS (RFC 9113, section 6.5)."""
    async with cloud.world(tmp_path) as here, _served(here) as address:
        settings = await asyncio.to_thread(_settings, address)
    max_concurrent_streams = 3
    assert settings[max_concurrent_streams] == MAX_CONNECTION_CALLS


def _settings(address):
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), WAIT_S) as road:
        road.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        stream = road.makefile("rb")
        header = stream.read(9)
        assert header[3] == 4
        body = stream.read(int.from_bytes(header[:3], "big"))
    return dict(struct.iter_unpack(">HI", body))


# Words ----------------------------------------------------------------------------------------


async def test_what_breaks_at_a_challenge_is_not_told(cloud, tmp_path, caplog, monkeypatch):
    """As a quote of hardware breaks: with the path of its device."""

    def broken(*arguments):
        raise ConfigurationError("/sys/kernel/CANARY-7434 cannot be read.")

    async with cloud.world(tmp_path) as here, _served(here) as address:
        monkeypatch.setattr(here.keys._attester, "evidence", broken)
        async with grpc.aio.insecure_channel(address) as channel:
            stub = trust_pb2_grpc.TrustStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Challenge(trust_pb2.ChallengeRequest(nonce=os.urandom(32)))
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert caught.value.details() == "internal error"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Challenge(trust_pb2.ChallengeRequest(nonce=b"short"))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "CANARY" not in caplog.text + here.log.getvalue()
    told = [event for event in here.events() if event["event"] == "InternalError"]
    assert [(event["kind"], event["where"]) for event in told] == [
        ("ConfigurationError", "Challenge")
    ]


@pytest.mark.parametrize(
    ("method", "broken"),
    [("GetBundle", "get_bundle"), ("GetCards", "get_cards"), ("Check", "models")],
)
async def test_no_method_tells_what_broke(cloud, tmp_path, caplog, monkeypatch, method, broken):
    async with cloud.world(tmp_path) as here, _served(here) as address:

        def fail(*arguments):
            raise RuntimeError("CANARY-7435")

        fault = property(fail) if broken == "models" else fail
        monkeypatch.setattr(type(here.node), broken, fault)
        path = "/overspill.wire.v1.Trust" if method != "Check" else f"/{health.SERVICE}"
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"{path}/{method}")(b"")
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert caught.value.details() == "internal error"
        monkeypatch.undo()
    assert "CANARY" not in caplog.text + here.log.getvalue()
    assert f'"where": "{method}"' in here.log.getvalue()
