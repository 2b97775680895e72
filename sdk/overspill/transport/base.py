"""The road to a node: what a transport owes. It moves bytes and knows nothing of their meaning.

Errors are :class:`~overspill.errors.TransportError` ("the road is bad") and, for the three
answers that a node may give before it can decrypt, ``KeyUnknown``, ``InvalidRequest`` and
``BusyError``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Protocol

from overspill.types.evidence import EvidenceBundle


@dataclass(frozen=True, slots=True)
class SealedHead:
    """All that travels in clear: which key, and the secret sealed to it."""

    nkc_sha256: bytes
    sealed_key: bytes


class ReadyFrames:
    """Frames that are all there, one after the other: a transport may send them together."""

    def __init__(self, frames: Iterable[bytes]) -> None:
        self._frames = iter(frames)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        frame = next(self._frames, None)
        if frame is None:
            raise StopAsyncIteration
        return frame

    def take(self, max_bytes: int) -> list[bytes]:
        """The frames that are left, where they have at most so many bytes together; else none."""
        frames = list(self._frames)
        if sum(map(len, frames)) <= max_bytes:
            return frames
        self._frames = iter(frames)
        return []


def is_local_address(address: str) -> bool:
    """True for Unix sockets, loopback IP addresses and ``localhost``."""
    if address.startswith("unix:"):
        return True
    host = address.rsplit(":", 1)[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Transport(Protocol):
    """One way to one node."""

    @property
    def address(self) -> str:
        """Where the node is, e.g. ``host:port`` or ``unix:/path``."""

    @property
    def is_local(self) -> bool:
        """True for loopback addresses and Unix sockets: the only places for dev evidence."""

    @property
    def bytes_sent(self) -> int:
        """Payload bytes that went out so far."""

    async def get_bundle(self) -> EvidenceBundle:
        """Fetch the node's evidence bundle."""

    async def challenge(self, nonce: bytes) -> EvidenceBundle:
        """Fetch fresh evidence over a 32-byte nonce."""

    async def get_cards(self) -> tuple[bytes, bytes]:
        """Fetch (serialised cards, signature)."""

    async def locate(self) -> tuple[bytes, bytes]:
        """Fetch (serialised list of replicas, signature); ``InvalidRequest`` for none."""

    def chat(self, head: SealedHead, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Send sealed frames; yield the response nonce (32 bytes) first, then sealed frames."""

    def enroll(self, head: SealedHead, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """As :meth:`chat`, for an enrolment."""

    def resume(self, stream_id: bytes, mac: bytes, next_frame: int) -> AsyncGenerator[bytes]:
        """Sealed frames of a stream whose connection was lost, from ``next_frame`` on; no nonce
        before them. ``InvalidRequest`` when the node does not have them (any more)."""

    async def cancel(self, stream_id: bytes, mac: bytes) -> None:
        """Tell the node to stop a stream."""

    async def aclose(self) -> None:
        """Close the connection and every call on it."""
