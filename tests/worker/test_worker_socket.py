"""A worker's socket: whole messages, one token, and nothing that a stranger can do."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.options import EngineOptions
from overspill.engines.registry import open_engine
from overspill.errors import (
    ConfigurationError,
    EngineError,
    InvalidRequest,
    TransportError,
    UnsupportedOption,
)
from overspill.testing import FakeEngine
from overspill.transport.local.framing import Frames
from overspill.transport.local.options import LocalOptions
from overspill.transport.local.worker_client import WorkerClient
from overspill.transport.local.worker_server import serve_worker
from overspill.types.chat import Message, Request
from overspill.types.embedding import EmbedRequest
from overspill.wire.v1 import local_pb2

pytestmark = pytest.mark.anyio

TOKEN = "right"


def _frame(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


@given(
    messages=st.lists(st.binary(max_size=300), max_size=8),
    cuts=st.lists(st.integers(min_value=1, max_value=200), min_size=1),
)
def test_messages_come_whole_however_they_are_cut(messages, cuts):
    came: list[bytes] = []
    frames = Frames(came.append, lambda why: None, max_bytes=300)
    stream = b"".join(map(_frame, messages))
    at = 0
    while at < len(stream):
        size = cuts[at % len(cuts)]
        frames.data_received(stream[at : at + size])
        at += size
    assert came == messages


@pytest.fixture
async def address(tmp_path):
    engine = open_engine("echo")
    await engine.start()
    where = f"unix:{tmp_path / 's'}"
    server, where = await serve_worker(engine, where, token=TOKEN)
    yield where
    server.close()
    await engine.aclose()


async def _raw(address):
    return await asyncio.open_unix_connection(address.removeprefix("unix:"))


@pytest.mark.parametrize(
    "shown",
    [
        _frame(b"wrong"),
        _frame(b""),
        _frame(TOKEN.encode() + b"x"),
        (1 << 31).to_bytes(4, "big"),
        _frame(b"t" * 5000),
    ],
    ids=["wrong", "none", "longer", "huge", "long"],
)
async def test_whoever_does_not_show_the_token_is_cut_off_and_hears_nothing(address, shown):
    reader, writer = await _raw(address)
    order = local_pb2.ConnectRequest(stream=1, get_status=local_pb2.GetStatusRequest())
    writer.write(shown + _frame(order.SerializeToString()))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)) as caught:
        await reader.readexactly(1)
    assert not getattr(caught.value, "partial", b"")
    writer.close()


@pytest.mark.parametrize("order", [b"\xff\xff\xff", (1 << 31).to_bytes(4, "big")])
async def test_what_is_no_order_ends_its_connection_and_no_other(address, order):
    client = await WorkerClient.connect(address, token=TOKEN)
    reader, writer = await _raw(address)
    writer.write(_frame(TOKEN.encode()) + _frame(order) + order)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await reader.readexactly(1)
    assert (await client.status()).health.ok
    await client.aclose()
    writer.close()


async def test_a_parent_that_leaves_ends_its_answers(address):
    engine = open_engine("echo", options=EngineOptions(token_delay_s=0.05))
    await engine.start()
    server, where = await serve_worker(engine, address + "2", token=TOKEN)
    client = await WorkerClient.connect(where, token=TOKEN)
    stream = client.chat(Request((Message("user", "x" * 100),)))
    await anext(stream)
    assert (await engine.health()).active == 1
    await client.aclose()
    with pytest.raises(TransportError, match="it was closed"):
        [chunk async for chunk in stream]
    while (await engine.health()).active:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0.005)
    with pytest.raises(TransportError, match="it was closed"):
        await client.status()
    server.close()
    await engine.aclose()


async def test_a_request_over_the_limit_is_refused_before_it_is_sent(address):
    options = LocalOptions(max_message_bytes=1000)
    client = await WorkerClient.connect(address, token=TOKEN, options=options)
    with pytest.raises(InvalidRequest, match="1000 are the most"):
        [chunk async for chunk in client.chat(Request((Message("user", "x" * 2000),)))]
    assert (await client.status()).health.ok
    await client.aclose()


async def test_an_engine_does_not_embed(address):
    client = await WorkerClient.connect(address, token=TOKEN)
    with pytest.raises(UnsupportedOption, match="opened to generate"):
        await client.embed(EmbedRequest(("one",)))
    await client.aclose()


async def test_what_fails_in_an_unknown_way_is_told_and_not_waited_for(tmp_path):
    class Sick(FakeEngine):
        async def health(self):
            raise RuntimeError("no pulse")

    server, where = await serve_worker(Sick(), f"unix:{tmp_path / 's'}", token=TOKEN)
    client = await WorkerClient.connect(where, token=TOKEN)
    with pytest.raises(EngineError, match="RuntimeError: no pulse"):
        await client.status()
    await client.aclose()
    server.close()


async def test_nobody_listens_is_said(tmp_path):
    with pytest.raises(TransportError, match="No answer from"):
        await WorkerClient.connect(f"unix:{tmp_path / 'none'}", token=TOKEN)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "unix:/nowhere/at/all", "192.0.2.1:0"])
async def test_only_local_addresses_that_can_be_bound_are_served(address):
    with pytest.raises(ConfigurationError, match=r"not local|Cannot listen"):
        await serve_worker(open_engine("echo"), address, token=TOKEN)


async def test_a_port_that_is_taken_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match="Cannot listen"):
            await serve_worker(open_engine("echo"), where, token=TOKEN)


async def test_a_parent_that_does_not_read_holds_nothing_up_but_itself(address):
    reader, writer = await _raw(address)
    asked = 5_000  # their answers are more than a socket holds
    orders = (
        local_pb2.ConnectRequest(stream=n + 1, get_status=local_pb2.GetStatusRequest())
        for n in range(asked)
    )
    writer.write(_frame(TOKEN.encode()))
    writer.writelines([_frame(order.SerializeToString()) for order in orders])
    other = await WorkerClient.connect(address, token=TOKEN)
    assert (await other.status()).health.ok
    told: list[int] = []
    while len(told) < asked:
        size = int.from_bytes(await reader.readexactly(4), "big")
        batch = local_pb2.EventBatch.FromString(await reader.readexactly(size))
        told += [event.stream for event in batch.events if event.HasField("status")]
    assert sorted(told) == list(range(1, asked + 1))
    await other.aclose()
    writer.close()
