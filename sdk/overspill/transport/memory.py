"""The road within one process: for tests, and for apps that try things out without a network.

The same bytes as over gRPC, so everything above it is the real thing; taps may alter, drop,
repeat or reorder frames on the way.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from overspill.transport.base import SealedHead
from overspill.types.evidence import EvidenceBundle

Tap = Callable[[int, bytes], Iterable[bytes]]
"""From a frame's index and bytes to what arrives: ``[frame]``, nothing, or something else."""


def pass_on(_index: int, frame: bytes) -> Iterable[bytes]:
    """The tap that changes nothing."""
    return (frame,)


class SealedNode(Protocol):
    """What a node offers behind any wire. ``overspill_cloud.node.Node`` is one."""

    async def get_bundle(self) -> EvidenceBundle:
        """The evidence."""

    async def challenge(self, nonce: bytes) -> EvidenceBundle:
        """Fresh evidence over a nonce."""

    async def get_cards(self) -> tuple[bytes, bytes]:
        """(serialised cards, signature)."""

    async def locate(self) -> tuple[bytes, bytes]:
        """(serialised list of replicas, signature)."""

    def chat(
        self, head: SealedHead, frames: AsyncIterator[bytes]
    ) -> AsyncGenerator[Sequence[bytes]]:
        """The response nonce, alone, then sealed frames: each time those that are ready."""

    def enroll(
        self, head: SealedHead, frames: AsyncIterator[bytes]
    ) -> AsyncGenerator[Sequence[bytes]]:
        """As :meth:`chat`, for an enrolment."""

    def resume(self, stream: bytes, mac: bytes, next_frame: int) -> AsyncGenerator[Sequence[bytes]]:
        """Sealed frames from ``next_frame`` on, each time those that are ready."""

    async def cancel(self, stream: bytes, mac: bytes) -> None:
        """Stop a stream."""


@dataclass(slots=True)
class Taps:
    """What happens to traffic on the way. ``on_response`` sees the response nonce as frame 0."""

    on_head: Callable[[SealedHead], SealedHead] = lambda head: head
    on_request: Tap = pass_on
    on_response: Tap = pass_on
    on_bundle: Callable[[EvidenceBundle], EvidenceBundle] = lambda bundle: bundle
    seen: list[bytes] = field(default_factory=list)
    """Everything that left the client, in order: head, sealed key, frames."""


class MemoryTransport:
    """A :class:`~overspill.transport.base.Transport` to a node object in this process."""

    def __init__(
        self, node: SealedNode, taps: Taps | None = None, *, address: str = "memory:node"
    ) -> None:
        self._node = node
        self._address = address
        self._bytes_sent = 0
        self._calls: set[AsyncGenerator[Sequence[bytes]]] = set()
        self.taps = taps or Taps()

    @property
    def address(self) -> str:
        """A name; nothing listens there."""
        return self._address

    @property
    def is_local(self) -> bool:
        """It never leaves the process."""
        return True

    @property
    def bytes_sent(self) -> int:
        """Payload bytes handed to the node so far."""
        return self._bytes_sent

    async def get_bundle(self) -> EvidenceBundle:
        """Fetch the node's evidence bundle."""
        return self.taps.on_bundle(await self._node.get_bundle())

    async def challenge(self, nonce: bytes) -> EvidenceBundle:
        """Fetch fresh evidence over a 32-byte nonce."""
        self._count(nonce)
        return self.taps.on_bundle(await self._node.challenge(nonce))

    async def get_cards(self) -> tuple[bytes, bytes]:
        """Fetch (serialised cards, signature)."""
        return await self._node.get_cards()

    async def locate(self) -> tuple[bytes, bytes]:
        """Fetch (serialised list of replicas, signature)."""
        return await self._node.locate()

    def chat(self, head: SealedHead, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Send sealed frames; yield the response nonce first, then sealed frames."""
        return self._stream(self._node.chat, head, frames)

    def enroll(self, head: SealedHead, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """As :meth:`chat`, for an enrolment."""
        return self._stream(self._node.enroll, head, frames)

    async def resume(self, stream_id: bytes, mac: bytes, next_frame: int) -> AsyncGenerator[bytes]:
        """Sealed frames from ``next_frame`` on; taps see the frame's own index."""
        self._count(stream_id, mac)
        async with aclosing(self._node.resume(stream_id, mac, next_frame)) as answer:
            self._calls.add(answer)
            try:
                index = next_frame + 1
                async for ready in answer:
                    for frame in ready:
                        for arrived in self.taps.on_response(index, frame):
                            yield arrived
                        index += 1
            finally:
                self._calls.discard(answer)

    async def cancel(self, stream_id: bytes, mac: bytes) -> None:
        """Tell the node to stop a stream."""
        self._count(stream_id, mac)
        await self._node.cancel(stream_id, mac)

    async def aclose(self) -> None:
        """Leave every call."""
        for call in tuple(self._calls):
            await call.aclose()

    async def _stream(
        self,
        serve: Callable[[SealedHead, AsyncIterator[bytes]], AsyncGenerator[Sequence[bytes]]],
        head: SealedHead,
        frames: AsyncIterator[bytes],
    ) -> AsyncGenerator[bytes]:
        head = self.taps.on_head(head)
        self._count(head.nkc_sha256, head.sealed_key)
        async with aclosing(serve(head, self._outgoing(frames))) as answer:
            self._calls.add(answer)
            try:
                index = 0
                async for ready in answer:
                    for frame in ready:
                        for arrived in self.taps.on_response(index, frame):
                            yield arrived
                        index += 1
            finally:
                self._calls.discard(answer)

    async def _outgoing(self, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        index = 0
        async for frame in frames:
            for sent in self.taps.on_request(index, frame):
                self._count(sent)
                yield sent
            index += 1

    def _count(self, *parts: bytes) -> None:
        self._bytes_sent += sum(len(part) for part in parts)
        self.taps.seen.extend(parts)
