"""A TCP proxy that does to a connection what networks do: cuts, resets, silence, delay, slow
links, damaged bytes. Faults can be switched while connections run."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress

CHUNK_BYTES = 16 << 10


class FaultProxy:
    """Stands before ``target`` (``host:port``) on a loopback port of its own, ``address``."""

    def __init__(self, target: str, seed: int = 0) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.address = ""
        self.is_down = False
        """Every connection is refused by a reset."""
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self.corrupt_next = False
        self.cut_after_bytes: int | None = None
        """So many bytes towards the client later, all connections are reset."""
        self.stays_down = False
        """After that reset every connection is refused, until ``is_down`` is taken back."""
        self.was_cut = asyncio.Event()
        """Whether that reset has come."""
        self.truncate_next = False
        """Half of what comes next towards the client arrives, and then a reset."""
        self.sent_bytes = 0
        """Towards clients, so far."""
        self.connections = 0
        """That were passed on."""

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection now, as a lost link or a NAT that forgot would."""
        for pair in tuple(self._pairs):
            for writer in pair:
                _reset(writer)

    def close_all(self) -> None:
        """End every connection in good order, in the middle of whatever was under way."""
        for pair in tuple(self._pairs):
            for writer in pair:
                writer.close()

    def black_hole(self, on: bool) -> None:
        """Keep connections, and pass nothing on."""
        if on:
            self._flowing.clear()
        else:
            self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_down:
            _reset(writer)
            return
        try:
            upstream, up = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        self.connections += 1
        pair = (writer, up)
        self._pairs.add(pair)
        ways = [
            asyncio.create_task(self._pass_on(reader, up, to_client=False)),
            asyncio.create_task(self._pass_on(upstream, writer, to_client=True)),
        ]
        self._tasks.update(ways)
        with suppress(asyncio.CancelledError):  # the loop ends while a connection runs
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
            self._tasks.discard(way)
        self._pairs.discard(pair)
        for one in pair:
            one.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_client: bool
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flowing.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.bytes_per_s is not None and to_client:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                if to_client:
                    data = self._damaged(data)
                    self.sent_bytes += len(data)
                writer.write(data)
                await writer.drain()

    def _damaged(self, data: bytes) -> bytes:
        if self.corrupt_next:
            self.corrupt_next = False
            at = self._random.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ (1 << self._random.randrange(8))]) + data[at + 1 :]
        if self.truncate_next:
            self.truncate_next = False
            asyncio.get_running_loop().call_soon(self.cut)
            return data[: len(data) // 2]
        if self.cut_after_bytes is not None:
            left = self.cut_after_bytes - len(data)
            self.cut_after_bytes = left
            if left <= 0:
                self.cut_after_bytes = None
                asyncio.get_running_loop().call_soon(self._cut_there)
                return data[:left] if left else data
        return data

    def _cut_there(self) -> None:
        self.is_down = self.is_down or self.stays_down
        self.cut()
        self.was_cut.set()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
