"""What the cloud began and could not end, the device ends: nothing repeated, nothing lost, and the
route says so."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from overspill import AsyncOverspill
from overspill.errors import StreamBroken, StreamCorrupt
from overspill.exchange import ExchangeLimits
from overspill.opening import open_device_key, open_trust_policy
from overspill.remote import RemoteEngine, RemoteOptions
from overspill.testing import FakeEngine
from overspill.transport.grpc import GrpcTransport
from overspill.types.route import Route, RouteReason

pytestmark = pytest.mark.anyio
REFUSAL = "I'm sorry, but I can't help with that."
ASKED = "Hello there, how are you today, and what is it like where you are?"


class Cut(GrpcTransport):
    """Breaks each stream after a few frames, for good."""

    error: type[Exception] = StreamBroken

    async def chat(self, head, frames):
        async with aclosing(super().chat(head, frames)) as call:
            for _ in range(3):  # the nonce, the acceptance, some text: more may come as one frame
                yield await anext(call)
        raise self.error("cut")

    async def resume(self, *_):
        raise StreamBroken("no road")
        yield b""


class Device(FakeEngine):
    """Refuses, which sends the request to the cloud; then ends what it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    async def _generate(self, request):
        self.seen.append(request)
        whole = f"echo: {ASKED}"
        text = whole.removeprefix(request.prefix) if request.prefix else REFUSAL
        async for chunk in FakeEngine(text)._generate(request):
            yield chunk


async def _client(cloud, device, road):
    cloud.settings.routing_policy.write_text('version = "faults alone"\nthreshold = 0.5\n')
    settings = cloud.settings
    limits = ExchangeLimits(resume_timeout_s=0.05)
    engine = RemoteEngine(
        road, open_trust_policy(settings), open_device_key(settings), RemoteOptions(limits=limits)
    )
    plain = RemoteEngine(
        GrpcTransport(settings.cloud.address),
        open_trust_policy(settings),
        open_device_key(settings),
    )
    await plain.enroll(cloud.code())
    await plain.aclose()
    return AsyncOverspill("t", settings=settings, device=device, cloud=engine)


async def test_the_device_ends_what_the_cloud_began(cloud_at):
    device = Device()
    async with cloud_at() as cloud:
        road = Cut(cloud.settings.cloud.address)
        async with await _client(cloud, device, road) as ai:
            pieces = [piece async for piece in ai.stream(ASKED)]
    assert "".join(piece.text for piece in pieces) == f"echo: {ASKED}"
    routes = [piece.route.route for piece in pieces]
    assert routes == sorted(routes, key=[Route.CLOUD, Route.DEVICE].index)
    assert set(routes) == {Route.CLOUD, Route.DEVICE}
    last = pieces[-1].route
    assert last.reason is RouteReason.FALL_BACK
    assert last.changes[-1] == "cloud -> device: stream_broken"
    assert device.seen[-1].attempt > 0
    assert device.seen[-1].prefix == "".join(
        piece.text for piece in pieces if piece.route.route is Route.CLOUD
    )


async def test_text_of_a_peer_that_is_wrong_is_no_beginning(cloud_at):
    async with cloud_at() as cloud:
        road = Cut(cloud.settings.cloud.address)
        road.error = StreamCorrupt
        async with await _client(cloud, Device(), road) as ai:
            with pytest.raises(StreamCorrupt) as caught:
                _ = [piece async for piece in ai.stream(ASKED)]
    assert f"echo: {ASKED}".startswith(caught.value.partial)
    assert caught.value.partial
