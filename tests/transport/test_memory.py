"""The in-process road: the same bytes, and taps that change them."""

from __future__ import annotations

import pytest

from overspill.transport.base import SealedHead
from overspill.transport.memory import MemoryTransport, Taps

pytestmark = pytest.mark.anyio

HEAD = SealedHead(b"n" * 32, b"k" * 32)


class Mirror:
    """A node that sends back what it gets."""

    closed = False

    async def chat(self, head, frames):
        try:
            yield (head.sealed_key,)
            yield [frame async for frame in frames]
        finally:
            self.closed = True

    async def cancel(self, stream_id, mac):
        self.cancelled = (stream_id, mac)


async def _frames(*parts):
    for part in parts:
        yield part


async def test_what_is_sent_arrives_and_is_counted():
    transport = MemoryTransport(Mirror())
    got = [part async for part in transport.chat(HEAD, _frames(b"a", b"bc"))]
    assert got == [HEAD.sealed_key, b"a", b"bc"]
    assert transport.bytes_sent == 64 + 3
    assert transport.taps.seen == [b"n" * 32, b"k" * 32, b"a", b"bc"]
    assert transport.is_local


async def test_taps_drop_repeat_and_alter():
    taps = Taps(
        on_request=lambda i, f: () if i == 0 else (f, f),
        on_response=lambda i, f: (f.upper(),),
    )
    transport = MemoryTransport(Mirror(), taps)
    got = [part async for part in transport.chat(HEAD, _frames(b"a", b"b"))]
    assert got == [b"K" * 32, b"B", b"B"]


async def test_leaving_a_stream_closes_it_at_the_node():
    node = Mirror()
    answer = MemoryTransport(node).chat(HEAD, _frames(b"a"))
    await anext(answer)
    await answer.aclose()
    assert node.closed
