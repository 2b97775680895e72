"""The light client, against a real socket that splits and ends streams as it likes."""

import asyncio
import json
from contextlib import aclosing, asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.bench.sse import get_status, post_events
from overspill.errors import ConnectFailed, EngineError, StreamBroken

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PLAIN_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\r\n"
DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def answering(*parts: bytes):
    """A server that reads one request, sends the parts one by one, and closes."""
    seen = []

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        seen.append((head, await reader.readexactly(length)))
        for part in parts:
            writer.write(part)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], seen


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def events_of(*parts: bytes):
    async with answering(*parts) as (port, _):
        return [e async for e in post_events(port, "/completion", {"prompt": "a"})]


@pytest.mark.anyio
async def test_the_request_is_whole():
    async with answering(HEAD, chunk(event({"a": 1})), b"0\r\n\r\n") as (port, seen):
        assert [e async for e in post_events(port, "/v1/x", {"n": 1})] == [{"a": 1}]
    head, body = seen[0]
    assert head.startswith(b"POST /v1/x HTTP/1.1\r\n")
    assert json.loads(body) == {"n": 1}


splits = st.lists(st.integers(1, 12), min_size=1, max_size=20)


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=8), max_size=2), max_size=6),
    splits,
    st.booleans(),
    st.booleans(),
)
def test_events_are_the_same_however_they_are_split(values, sizes, chunked, done):
    data = b": ping\n\n" + b"".join(map(event, values)) + (DONE if done else b"")
    parts, at = [], 0
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    parts = [part for part in (*parts, data[at:]) if part]
    whole = [HEAD, *map(chunk, parts), b"0\r\n\r\n"] if chunked else [PLAIN_HEAD, *parts]
    assert asyncio.run(events_of(*whole)) == values


@pytest.mark.anyio
async def test_nothing_after_the_done_event_is_read():
    assert await events_of(HEAD, chunk(event(1) + DONE + event(2)), b"0\r\n\r\n") == [1]


@pytest.mark.anyio
@pytest.mark.parametrize("last", [b"", b"5\r\nda", b"zz"])
async def test_a_stream_that_is_cut_off_is_an_error(last):
    with pytest.raises(StreamBroken):
        await events_of(HEAD, chunk(event(1)), last)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n",
    ],
)
async def test_an_answer_that_is_no_stream_is_an_error_that_quotes_it(head):
    with pytest.raises(EngineError, match="model not loaded"):
        await events_of(head, b'{"error": "model not loaded"}')


@pytest.mark.anyio
async def test_nobody_at_the_port(unused_tcp_port_of_ours):
    with pytest.raises(ConnectFailed):
        _ = [e async for e in post_events(unused_tcp_port_of_ours, "/", {})]
    assert await get_status(unused_tcp_port_of_ours, "/health") == 0


@pytest.mark.anyio
async def test_a_health_check_gives_the_status():
    async with answering(b"HTTP/1.1 503 Loading\r\nContent-Length: 0\r\n\r\n") as (port, _):
        assert await get_status(port, "/health") == 503
    async with answering(b"nonsense\r\n\r\n") as (port, _):
        assert await get_status(port, "/health") == 0


@pytest.mark.anyio
async def test_leaving_a_stream_closes_its_connection():
    closed = asyncio.Event()

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + chunk(event(1)))
        await reader.read()  # the body, then the end that the client's leaving brings
        closed.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with aclosing(post_events(port, "/", {})) as events:
            assert await anext(events) == 1
        await asyncio.wait_for(closed.wait(), 10)


@pytest.fixture
def unused_tcp_port_of_ours():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]  # bound, but nobody listens
