"""A client for peers' servers, as light as it can be: HTTP/1.1 POST, server-sent events.

The client shares the machine with the server that it measures, so each microsecond it spends is
taken from that server's figure. A full HTTP library spends 5 to 20 times as much for an event
(h11's state machine, a decoder, one object per line); these peers send one well-formed chunk per
event over loopback, and this reads exactly that.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from overspill.errors import ConnectFailed, EngineError, StreamBroken

_MAX_LINE_BYTES = 16 << 20
"""A final event repeats the prompt: 8,000 tokens are no small line."""


async def post_events(
    where: int | Path, path: str, body: Mapping[str, Any]
) -> AsyncGenerator[dict[str, Any]]:
    """POST to a port of 127.0.0.1 or a Unix socket and yield the JSON of each event up to the end
    or ``[DONE]``.

    Raises :class:`ConnectFailed`, :class:`EngineError` for an answer that is no event stream, and
    :class:`StreamBroken` for one that is cut off. Closing the generator closes the connection.
    """
    reader, writer = await _connect(where)
    try:
        await _send(writer, "POST", path, json.dumps(body).encode())
        status, headers = await _head(reader)
        if status != 200 or "text/event-stream" not in headers.get("content-type", ""):
            said = (await reader.read(300)).decode("utf-8", "replace")
            raise EngineError(f"POST {path} was answered with {status}: {said}")
        chunked = headers.get("transfer-encoding", "") == "chunked"
        async with (
            aclosing(_chunks(reader) if chunked else _until_closed(reader)) as pieces,
            aclosing(_events(pieces)) as events,
        ):
            async for event in events:
                yield event
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise StreamBroken(f"The stream from {_name(where)} was cut off.") from error
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


class KeptConnection:
    """One connection to a Unix socket for requests one after the other, as clients keep one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ends: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post_events(
        self, path: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[dict[str, Any]]:
        """As the function of that name, to be read to its end. Raises the same."""
        if self._ends is None:
            self._ends = await _connect(self._path)
        reader, writer = self._ends
        try:
            await _send(writer, "POST", path, json.dumps(body).encode(), keep=True)
            status, headers = await _head(reader)
            if status != 200 or headers.get("transfer-encoding", "") != "chunked":
                raise EngineError(f"POST {path} was answered with {status}.")
            async with aclosing(_chunks(reader)) as pieces, aclosing(_events(pieces)) as events:
                async for event in events:
                    yield event
                async for _ in pieces:
                    pass  # to the next answer's beginning
            await reader.readexactly(2)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise StreamBroken(f"The stream from {self._path} was cut off.") from error

    def close(self) -> None:
        """Leave."""
        if self._ends is not None:
            self._ends[1].close()


async def post_json(where: int | Path, path: str, body: Mapping[str, Any]) -> Any:
    """POST and return the JSON of the answer. Raises as :func:`post_events`."""
    reader, writer = await _connect(where)
    try:
        await _send(writer, "POST", path, json.dumps(body).encode())
        status, _ = await _head(reader)
        said = await reader.read()
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise StreamBroken(f"The answer from {_name(where)} was cut off.") from error
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
    if status != 200:
        raise EngineError(f"POST {path} was answered with {status}: {said[:300]!r}")
    return json.loads(said)


async def _connect(where: int | Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        if isinstance(where, Path):
            return await asyncio.open_unix_connection(where, limit=_MAX_LINE_BYTES)
        return await asyncio.open_connection("127.0.0.1", where, limit=_MAX_LINE_BYTES)
    except OSError as error:
        raise ConnectFailed(f"No server at {_name(where)} ({error}).") from error


def _name(where: int | Path) -> str:
    return str(where) if isinstance(where, Path) else f"127.0.0.1:{where}"


async def get_status(port: int, path: str) -> int:
    """The status code of a GET; 0 where nobody answers."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0
    try:
        await _send(writer, "GET", path, b"")
        return (await _head(reader))[0]
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0
    finally:
        writer.close()


async def _send(
    writer: asyncio.StreamWriter, method: str, path: str, body: bytes, *, keep: bool = False
) -> None:
    kept = "keep-alive" if keep else "close"
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Accept: */*\r\nConnection: {kept}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await writer.drain()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers, names in lower case. Raises ``ConnectionError`` for other protocols."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = re.match(r"HTTP/1\.\d (\d{3})", first)
    if status is None:
        raise ConnectionError(f"no HTTP answer: {first[:40]!r}")
    pairs = (line.partition(":") for line in lines if line)
    return int(status[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def _chunks(reader: asyncio.StreamReader) -> AsyncGenerator[bytes]:
    """The chunked transfer coding (RFC 9112, 7.1), trailers left unread."""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _until_closed(reader: asyncio.StreamReader) -> AsyncGenerator[bytes]:
    while data := await reader.read(1 << 16):
        yield data


async def _events(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[dict[str, Any]]:
    held = b""
    async for piece in pieces:
        *lines, held = (held + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield json.loads(data)
