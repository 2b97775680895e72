"""A node on real sockets, under bad input: details for who is refused, health for who asks, and
others unharmed."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager

import anyio
import grpc
import grpc.aio
import pytest

from overspill.errors import BusyError, InvalidRequest, TransportError
from overspill.sealing.hpke import seal_secret
from overspill.testing import FakeEngine
from overspill.transport.base import SealedHead
from overspill.transport.grpc import GrpcTransport
from overspill.wire.v1 import sealed_pb2, status_pb2
from overspill_cloud import events, server
from overspill_cloud.server import start_server
from overspill_cloud.streams import StreamLimits

pytestmark = pytest.mark.anyio
SERVING, NOT_SERVING = 1, 2


@asynccontextmanager
async def _served(cloud, tmp_path, *engines, **limits):
    async with cloud.world(tmp_path, *engines, streams=StreamLimits(**limits)) as here:
        log = events.EventLog(here.clock, here.log)
        running, address = await start_server(here.node, log, "127.0.0.1:0", None)
        try:
            yield here, address
        finally:
            await running.stop(0)


async def _status(address, service=""):
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=status_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=status_pb2.HealthCheckResponse.FromString,
        )
        return (await check(status_pb2.HealthCheckRequest(service=service))).status


async def test_health_is_each_models_and_a_drain_ends_it(cloud, tmp_path):
    class Ill(FakeEngine):
        async def health(self):
            raise TransportError("gone")

    async with _served(cloud, tmp_path, FakeEngine(name="well"), Ill(name="ill")) as found:
        here, address = found
        assert await _status(address) == SERVING
        assert await _status(address, "well") == SERVING
        assert await _status(address, "ill") == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _status(address, "no such model")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await here.node.drain(0.0)
        assert await _status(address) == NOT_SERVING
        assert await _status(address, "well") == NOT_SERVING


async def test_what_never_sends_keeps_nobody_out(cloud, tmp_path):
    """Every place is held by a head with nothing behind it; a new request gets the oldest's."""
    limits = {"max_arriving": 3, "arriving_grace_s": 0.05}
    async with _served(cloud, tmp_path, **limits) as (here, address):
        engine = await here.enrolled(GrpcTransport(address))
        result = await engine.attest()
        idlers = GrpcTransport(address)

        async def nothing():
            await anyio.sleep_forever()
            yield b""

        held = []
        for _ in range(3):
            head = SealedHead(result.nkc_sha256, seal_secret(result).sealed_key)
            call = idlers.chat(head, nothing())
            assert len(await anext(call)) == 32
            held.append(call)
        await anyio.sleep(limits["arriving_grace_s"] * 2)
        chunks = await cloud.collect(engine, cloud.ask("still served"))
        assert cloud.text_of(chunks) == "echo: still served"
        for call in held:
            await call.aclose()
        await idlers.aclose()


async def test_a_full_door_says_why_and_for_how_long(cloud, tmp_path):
    limits = {"max_arriving": 1, "arriving_grace_s": 60.0}
    async with _served(cloud, tmp_path, **limits) as (here, address):
        engine = await here.enrolled(GrpcTransport(address))
        result = await engine.attest()
        with here.node._arrivals.place(), pytest.raises(BusyError) as caught:
            await cloud.collect(engine, cloud.ask())
        assert caught.value.reason == "QUEUE_FULL"
        assert caught.value.retry_after_s == 60.0
        assert result.nkc_sha256
        assert cloud.text_of(await cloud.collect(engine, cloud.ask("now"))) == "echo: now"


async def test_a_call_without_a_head_is_ended(cloud, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "HEAD_TIMEOUT_S", 0.1)
    async with (
        _served(cloud, tmp_path) as (_, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        method = channel.stream_stream(
            "/overspill.wire.v1.Sealed/Chat",
            request_serializer=sealed_pb2.SealedFrame.SerializeToString,
            response_deserializer=sealed_pb2.SealedFrame.FromString,
        )

        async def nothing():
            await anyio.sleep_forever()
            yield sealed_pb2.SealedFrame()

        call = method(nothing())
        answers = [message async for message in call]
        assert [message.error.code for message in answers] == [sealed_pb2.PublicError.BAD_REQUEST]


async def test_a_frame_over_the_limit_ends_its_own_call_alone(cloud, tmp_path):
    async with _served(cloud, tmp_path) as (here, address):
        engine = await here.enrolled(GrpcTransport(address))
        result = await engine.attest()
        road = GrpcTransport(address)

        async def too_large():
            yield os.urandom(3 << 20)

        head = SealedHead(result.nkc_sha256, seal_secret(result).sealed_key)
        with pytest.raises((TransportError, BusyError, InvalidRequest)):
            await _drained(road.chat(head, too_large()))
        chunks = await cloud.collect(engine, cloud.ask("unharmed"))
        assert cloud.text_of(chunks) == "echo: unharmed"
        await road.aclose()


async def _drained(frames):
    async for _ in frames:
        pass
