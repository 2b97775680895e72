"""Bytes that are no message: each method refuses them by a typed code, and nothing has failed."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from overspill.wire.v1 import sealed_pb2, trust_pb2
from overspill_cloud import events
from overspill_cloud.server import start_server

pytestmark = pytest.mark.anyio
NO_MESSAGE = b"\xff\xff\xff"
SERVICES = [
    *sealed_pb2.DESCRIPTOR.services_by_name.values(),
    *trust_pb2.DESCRIPTOR.services_by_name.values(),
]
STREAMS = {
    f"/{one.full_name}/{m.name}" for one in SERVICES for m in one.methods if m.client_streaming
}
ONCE = {f"/{one.full_name}/{m.name}" for one in SERVICES for m in one.methods} - STREAMS
HEALTH = {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}


@pytest.fixture
async def here(cloud, tmp_path):
    async with cloud.world(tmp_path) as world:
        yield world


@pytest.fixture
async def channel(here):
    log = events.EventLog(here.clock, here.log)
    running, address = await start_server(here.node, log, "127.0.0.1:0", None)
    try:
        async with grpc.aio.insecure_channel(address) as opened:
            yield opened
    finally:
        await running.stop(0)


@pytest.mark.parametrize("method", sorted(ONCE | HEALTH))
async def test_a_call_of_no_message_is_refused(channel, here, method):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in channel.unary_stream(method)(NO_MESSAGE, timeout=10):
            pass
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "These bytes are no message of this method."
    assert "InternalError" not in [event["event"] for event in here.events()]


@pytest.mark.parametrize("method", sorted(STREAMS))
async def test_a_stream_of_no_message_is_refused_in_public_words(channel, here, method):
    answers = [answer async for answer in channel.stream_stream(method)(iter([NO_MESSAGE] * 3))]
    told = [sealed_pb2.SealedFrame.FromString(answer) for answer in answers]
    assert [one.error.code for one in told] == [sealed_pb2.PublicError.BAD_REQUEST]
    assert "InternalError" not in [event["event"] for event in here.events()]
