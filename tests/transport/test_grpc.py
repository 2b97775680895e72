"""The gRPC road against a scripted server: statuses become typed errors, and calls are never
left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import anyio
import grpc
import grpc.aio
import pytest

from overspill.errors import (
    BusyError,
    ConfigurationError,
    ConnectFailed,
    InvalidRequest,
    KeyUnknown,
    StreamBroken,
    StreamCorrupt,
    TransportError,
)
from overspill.transport.base import SealedHead, is_local_address
from overspill.transport.grpc import GrpcOptions, GrpcTransport
from overspill.wire.v1 import sealed_pb2, sealed_pb2_grpc, trust_pb2_grpc

pytestmark = pytest.mark.anyio

HEAD = SealedHead(b"n" * 32, b"k" * 32)
Part = sealed_pb2.SealedFrame


class Script(sealed_pb2_grpc.SealedServicer, trust_pb2_grpc.TrustServicer):
    """Answers every call by ``act(requests, context)``; notes calls that were cancelled."""

    def __init__(self, act):
        self.act = act
        self.begun = asyncio.Event()
        self.left = asyncio.Event()
        self.received = []

    async def Chat(self, requests, context):
        self.begun.set()
        context.add_done_callback(lambda _: self.left.set())
        await self.act(self, requests, context)

    async def GetBundle(self, request, context):
        await self.act(self, None, context)

    async def Cancel(self, request, context):
        self.received.append((request.stream_id, request.mac))
        return sealed_pb2.CancelResponse()


@asynccontextmanager
async def script(act, tmp_path):
    server, script = grpc.aio.server(), Script(act)
    sealed_pb2_grpc.add_SealedServicer_to_server(script, server)
    trust_pb2_grpc.add_TrustServicer_to_server(script, server)
    address = f"unix:{tmp_path}/node.sock"
    server.add_insecure_port(address)
    await server.start()
    transport = GrpcTransport(address)
    try:
        yield script, transport
    finally:
        await transport.aclose()
        await server.stop(0)


async def read(requests):
    """As the node does: an answer before the client has written would be lost in grpcio."""
    async for _ in requests:
        pass


async def frames(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def received(transport):
    async with aclosing(transport.chat(HEAD, frames(b"one", b"two"))) as answer:
        return [part async for part in answer]


async def test_head_and_frames_go_out_nonce_and_frames_come_back(tmp_path):
    async def act(script, requests, context):
        async for message in requests:
            script.received.append(message)
        await context.write(Part(response_nonce=b"r" * 32))
        await context.write(Part(frame=b"sealed"))

    async with script(act, tmp_path) as (server, transport):
        assert await received(transport) == [b"r" * 32, b"sealed"]
        assert [m.WhichOneof("part") for m in server.received] == ["head", "frame", "frame"]
        assert server.received[0].head.sealed_key == HEAD.sealed_key
        assert transport.bytes_sent == sum(m.ByteSize() for m in server.received)


@pytest.mark.parametrize(
    ("code", "kind"),
    [("UNKNOWN_KEY", KeyUnknown), ("BAD_REQUEST", InvalidRequest), ("BUSY", BusyError)],
)
async def test_the_three_public_errors(tmp_path, code, kind):
    async def act(script, requests, context):
        await read(requests)
        code_number = sealed_pb2.PublicError.Code.Value(code)
        await context.write(Part(error=sealed_pb2.PublicError(code=code_number)))

    async with script(act, tmp_path) as (_, transport):
        with pytest.raises(kind):
            await received(transport)


@pytest.mark.parametrize(
    ("status", "before", "after"),
    [
        ("UNAVAILABLE", ConnectFailed, StreamBroken),
        ("INTERNAL", ConnectFailed, StreamBroken),
        ("CANCELLED", ConnectFailed, StreamBroken),
        ("DEADLINE_EXCEEDED", ConnectFailed, StreamBroken),
        ("UNKNOWN", ConnectFailed, StreamBroken),
        ("RESOURCE_EXHAUSTED", BusyError, BusyError),
        ("INVALID_ARGUMENT", InvalidRequest, InvalidRequest),
        ("UNIMPLEMENTED", TransportError, TransportError),
    ],
)
async def test_statuses_become_typed_errors(tmp_path, status, before, after):
    async def act(script, requests, context):
        if requests is not None:
            await read(requests)
            await context.write(Part(response_nonce=b"r" * 32))
        await context.abort(getattr(grpc.StatusCode, status), "line one\nline two")

    async with script(act, tmp_path) as (_, transport):
        with pytest.raises(before) as caught:
            await transport.get_bundle()
        assert "line two" not in str(caught.value)
        with pytest.raises(after) as caught:
            await received(transport)
        assert type(caught.value) is after


@pytest.mark.parametrize(
    "parts",
    [
        [Part(frame=b"no nonce first")],
        [Part(response_nonce=b"r" * 32), Part(response_nonce=b"s" * 32)],
        [Part(response_nonce=b"r" * 32), Part(head=sealed_pb2.RequestHead())],
        [Part()],
    ],
    ids=["frame first", "two nonces", "head back", "nothing"],
)
async def test_parts_out_of_order_are_corrupt(tmp_path, parts):
    async def act(script, requests, context):
        await read(requests)
        for part in parts:
            await context.write(part)

    async with script(act, tmp_path) as (_, transport):
        with pytest.raises(StreamCorrupt):
            await received(transport)


async def test_leaving_a_stream_cancels_the_call(tmp_path):
    async def act(script, requests, context):
        await context.write(Part(response_nonce=b"r" * 32))
        await anyio.sleep_forever()

    async with script(act, tmp_path) as (server, transport):
        async with aclosing(transport.chat(HEAD, frames())) as answer:
            await anext(answer)
        await server.left.wait()


async def test_closing_the_road_cancels_its_calls(tmp_path):
    async def act(script, requests, context):
        await context.write(Part(response_nonce=b"r" * 32))
        await anyio.sleep_forever()

    async with script(act, tmp_path) as (server, transport):
        answer = transport.chat(HEAD, frames())
        await anext(answer)
        await transport.aclose()
        await server.left.wait()
        with pytest.raises(StreamBroken):
            await anext(answer)


async def test_our_own_cancellation_stays_one(tmp_path):
    async def act(script, requests, context):
        await context.write(Part(response_nonce=b"r" * 32))
        await anyio.sleep_forever()

    async with script(act, tmp_path) as (server, transport):
        task = asyncio.create_task(received(transport))
        await server.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.left.wait()


@pytest.mark.parametrize("call", ["get_bundle", "chat"])
async def test_a_cancel_scope_knows_its_own_cancellation(tmp_path, call):
    async def act(script, requests, context):
        script.begun.set()
        await anyio.sleep_forever()

    async with script(act, tmp_path) as (server, transport):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def leave():
                    await server.begun.wait()
                    scope.cancel()

                tasks.start_soon(leave)
                await (transport.get_bundle() if call == "get_bundle" else received(transport))
        assert scope.cancelled_caught


async def test_a_closed_road_stays_closed(tmp_path):
    async with script(None, tmp_path) as (_, transport):
        await transport.aclose()
        with pytest.raises(ConnectFailed, match="closed"):
            await transport.get_bundle()


async def test_a_cancel_names_its_stream(tmp_path):
    async with script(None, tmp_path) as (server, transport):
        await transport.cancel(b"s" * 32, b"m" * 32)
        assert server.received == [(b"s" * 32, b"m" * 32)]


async def test_nobody_there_is_a_failed_connection(tmp_path):
    transport = GrpcTransport(f"unix:{tmp_path}/nobody.sock")
    with pytest.raises(ConnectFailed, match=r"nobody\.sock"):
        await transport.get_bundle()
    with pytest.raises(ConnectFailed):
        await received(transport)
    await transport.aclose()


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/x", True),
        ("10.0.0.1:1", False),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("localhost.example:1", False),
        ("127.0.0.1.example:1", False),
        ("node.example:8443", False),
    ],
)
def test_which_addresses_are_local(address, local):
    assert is_local_address(address) is local
    assert GrpcTransport(address).is_local is local
    if not local:
        with pytest.raises(ConfigurationError):
            GrpcTransport(address, GrpcOptions(plaintext=True))
