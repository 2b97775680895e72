"""Whole messages on a socket: each behind its length, four bytes, big-endian.

What a worker's socket carries. Parent and worker are one program on one machine, so nothing of
gRPC is missed there, and a token comes with one wake-up on either side where gRPC's takes six.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_LENGTH_BYTES = 4


class Frames(asyncio.Protocol):
    """One connection. ``on_frame`` gets each message, ``on_lost`` the end, once; a peer that
    announces more than ``max_bytes`` is cut off."""

    def __init__(
        self,
        on_frame: Callable[[bytes], None],
        on_lost: Callable[[str], None],
        max_bytes: int,
    ) -> None:
        self.max_bytes = max_bytes
        self.is_full = False
        """Whether the peer reads slower than is written."""
        self.on_room: Callable[[], None] | None = None
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._read = bytearray()
        self._transport: asyncio.Transport
        self._why = "it ended the connection"

    @property
    def is_closing(self) -> bool:
        """Whether nothing that is written now would be sent."""
        return self._transport.is_closing()

    def write(self, message: bytes) -> None:
        """Send one message; what the peer does not read yet is kept."""
        self._transport.write(len(message).to_bytes(_LENGTH_BYTES, "big") + message)

    def cut(self, why: str) -> None:
        """End the connection, and what was not sent."""
        self._why = why
        self._transport.abort()

    # What asyncio calls -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the road."""
        self._transport = transport  # type: ignore[assignment]  # a stream's has all that is used

    def data_received(self, data: bytes) -> None:
        """Hand out what is whole."""
        self._read += data
        start, held = 0, len(self._read)
        while held - start >= _LENGTH_BYTES:
            begin = start + _LENGTH_BYTES
            size = int.from_bytes(self._read[start:begin], "big")
            if size > self.max_bytes:
                self.cut(f"a message of {size} bytes came, {self.max_bytes} are allowed")
                return
            if held - begin < size:
                break
            start = begin + size
            self._on_frame(bytes(self._read[begin:start]))
        del self._read[:start]

    def pause_writing(self) -> None:
        """The peer is slow."""
        self.is_full = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self.is_full = False
        if self.on_room is not None:
            self.on_room()

    def connection_lost(self, error: Exception | None) -> None:
        """It is over."""
        self._on_lost(self._why if error is None else f"{type(error).__name__}: {error}")
