"""Several frames in one message, to whoever says that he reads them; one each to anybody else."""

from __future__ import annotations

import time

import grpc.aio
import pytest

from overspill.exchange import seal_request
from overspill.transport.base import ReadyFrames
from overspill.wire import plaintext
from overspill.wire.v1 import sealed_pb2, sealed_pb2_grpc
from overspill_cloud.ring import FrameRing
from overspill_cloud.streams import Wake

pytestmark = pytest.mark.anyio


async def _messages(node, engine, cloud, *, bundles):
    """What a client of this kind is answered, message by message."""
    attested = await engine.attest()
    body = plaintext.request_to_bytes(cloud.ask("hello", max_tokens=1))
    outgoing = seal_request(attested, engine._signer, body, int(time.time() * 1000))
    head = sealed_pb2.RequestHead(
        nkc_sha256=outgoing.head.nkc_sha256,
        sealed_key=outgoing.head.sealed_key,
        bundles=bundles,
    )
    sent = [sealed_pb2.SealedFrame(head=head, more=outgoing.frames if bundles else ())]
    if not bundles:
        sent += [sealed_pb2.SealedFrame(frame=frame) for frame in outgoing.frames]
    async with grpc.aio.insecure_channel(node.listen) as channel:
        stub = sealed_pb2_grpc.SealedStub(channel)
        return [message async for message in stub.Chat(iter(sent))]


async def test_an_older_client_gets_a_message_for_each_frame(start_node, cloud):
    node = start_node()
    engine = await node.enrolled()
    older = await _messages(node, engine, cloud, bundles=False)
    newer = await _messages(node, engine, cloud, bundles=True)
    assert older[0].WhichOneof("part") == newer[0].WhichOneof("part") == "response_nonce"
    assert not any(message.more for message in older)
    assert newer[0].more  # the acceptance rides with the nonce
    assert len(newer) < len(older)
    await engine.aclose()


async def test_what_is_ready_goes_together_up_to_a_size():
    assert await anext(ReadyFrames([b"a", b"b"])) == b"a"
    assert ReadyFrames([b"aa", b"bb"]).take(4) == [b"aa", b"bb"]
    too_much = ReadyFrames([b"aa", b"bb"])
    assert too_much.take(3) == []
    assert [frame async for frame in too_much] == [b"aa", b"bb"]


def test_a_ring_gives_at_least_one_frame_and_at_most_so_many_bytes():
    ring = FrameRing(1000, 1000, lambda: 0.0)
    for frame in (b"a" * 10, b"b" * 10, b"c" * 50):
        ring.append(frame)
    assert ring.read_on(0, 20) == [b"a" * 10, b"b" * 10]
    assert ring.read_on(2, 20) == [b"c" * 50]
    assert ring.read_on(3, 20) == []


async def test_one_timer_serves_all_waits():
    wake = Wake()
    await wake.wait(0.0)  # nobody set it: its time was over
    begun = time.monotonic()
    wake._loop.call_soon(wake.set)
    await wake.wait(3600.0)
    timer = wake._timer
    wake._loop.call_soon(wake.set)
    await wake.wait(3600.0)
    assert wake._timer is timer
    await wake.wait(0.001)  # sooner than the timer that stands
    assert time.monotonic() - begun < 3000
    wake.stop()
