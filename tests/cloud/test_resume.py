"""A lost connection loses nothing: the same frames over another one, by nobody else, and for a
while; a repeated start is the same stream."""

from __future__ import annotations

import time
import tracemalloc
from contextlib import aclosing, asynccontextmanager

import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overspill.errors import BusyError, ConnectFailed, DeviceRejected, InvalidRequest, StreamBroken
from overspill.remote import RemoteEngine, RemoteOptions
from overspill.testing import FakeEngine
from overspill.transport.guard import GuardOptions
from overspill.transport.memory import MemoryTransport
from overspill.types.chat import Chunk
from overspill_cloud.limits import AdmissionLimits
from overspill_cloud.ring import FrameGone, FrameRing
from overspill_cloud.room import Demand, Room
from overspill_cloud.streams import StreamLimits

pytestmark = pytest.mark.anyio
TEXT = "0123456789 abcdefghij klmnopqrstuvw"


class Cutting(MemoryTransport):
    """Breaks each call after ``after`` frames, ``times`` times; a resumption can be forbidden."""

    def __init__(self, node, after, times=1, resumes=True, **options):
        super().__init__(node, **options)
        self.after, self.times, self.resumes = after, times, resumes
        self.begun = self.resumed = 0

    def chat(self, head, frames):
        self.begun += 1
        return self._cut(super().chat(head, frames))

    def resume(self, stream, mac, next_frame):
        self.resumed += 1
        if not self.resumes:
            raise StreamBroken("no road")
        return self._cut(super().resume(stream, mac, next_frame))

    async def _cut(self, call):
        count = 0
        async with aclosing(call) as frames:
            async for frame in frames:
                if count >= self.after and self.times:
                    self.times -= 1
                    raise StreamBroken("cut")
                count += 1
                yield frame


async def _world(cloud, tmp_path, **limits):
    each = StreamLimits(**{"gather_s": 0.0, **limits})  # a frame for each token: more to be lost
    return cloud.world(tmp_path, cloud.engine(token_delay_s=0.001), streams=each)


@pytest.mark.parametrize("after", [0, 1, 2, 5])
async def test_a_cut_stream_goes_on_where_it_was(cloud, tmp_path, after):
    # By this engine a word is a frame always: tokens that a scheduler's thread has ready together
    # come as one, and there may be too few to be cut thrice.
    said = "word " * 40
    each = StreamLimits(gather_s=0.0)
    async with cloud.world(tmp_path, FakeEngine(said, delay_s=0.001), streams=each) as here:
        road = Cutting(here.node, after, times=3)
        engine = await here.enrolled(road)
        chunks = await cloud.collect(engine, cloud.ask(TEXT))
        assert cloud.text_of(chunks).split() == said.split()
        assert chunks[-1].finish.receipt
        assert road.times == 0
        await here.node.drain(5.0)
        ended = [event for event in here.events() if event["event"] == "StreamEnded"]
        assert [event["outcome"] for event in ended] == ["stop"]


async def test_nobody_else_resumes_a_stream_and_no_frame_is_invented(cloud, tmp_path):
    async with await _world(cloud, tmp_path) as here:
        engine = await here.enrolled()
        stream = engine.generate(cloud.ask(TEXT))
        await anext(stream)
        (known,) = here.node._live._answers
        for attempt in ((known, b"m" * 32, 0), (b"x" * 32, b"m" * 32, 0)):
            with pytest.raises(InvalidRequest, match="cannot be resumed"):
                await anext(here.node.resume(*attempt))
        await stream.aclose()


async def test_what_waits_for_a_lost_reader_is_there_when_he_comes_back(cloud, tmp_path):
    async with await _world(cloud, tmp_path, detach_grace_s=5.0) as here:
        road = Cutting(here.node, 3)
        engine = await here.enrolled(road, first_pause_s=0.05)
        chunks = await cloud.collect(engine, cloud.ask(TEXT))
        assert cloud.text_of(chunks) == f"echo: {TEXT}"
        assert road.resumed == 1


async def test_a_revoked_device_resumes_nothing(cloud, tmp_path):
    async with await _world(cloud, tmp_path) as here:
        key = cloud.device_key()
        engine = await here.enrolled(Cutting(here.node, 3), key=key)
        stream = engine.generate(cloud.ask(TEXT))
        await anext(stream)
        here.store.revoke(key.thumbprint, 1)
        with pytest.raises((StreamBroken, DeviceRejected)):
            async for _ in stream:
                pass


async def test_without_a_way_back_another_replica_goes_on(cloud, tmp_path):
    """Both replicas are one node here: what counts is that the second is asked for the rest."""
    async with await _world(cloud, tmp_path) as here:
        key = cloud.device_key()
        await here.enrolled(key=key)
        roads = [Cutting(here.node, 8, resumes=False, address=f"memory:{name}") for name in "ab"]
        engine = RemoteEngine(roads, here.policy, key, clock=here.clock)
        roads[0].times = roads[1].times = 1
        # Only the preferred one breaks.
        preferred = next(road for road in roads if road.address == engine.address)
        for road in roads:
            road.times = int(road is preferred)
        request = cloud.ask(TEXT, max_tokens=100)
        chunks = await cloud.collect(engine, request)
        assert cloud.text_of(chunks) == f"echo: {TEXT}"
        assert chunks[-1].finish.receipt
        assert chunks[-1].finish.usage.completion_tokens >= len(f"echo: {TEXT}")
        (move,) = engine.moves(request.id)
        assert move == f"cloud {preferred.address} -> cloud: stream_broken"
        await engine.aclose()


async def test_one_road_alone_ends_with_the_text_that_came(cloud, tmp_path):
    async with await _world(cloud, tmp_path) as here:
        engine = await here.enrolled(Cutting(here.node, 8, resumes=False), resume_timeout_s=0.1)
        with pytest.raises(StreamBroken) as caught:
            await cloud.collect(engine, cloud.ask(TEXT))
        assert f"echo: {TEXT}".startswith(caught.value.partial)


class Counting(MemoryTransport):
    """Counts the requests that were sent."""

    def __init__(self, node, address):
        super().__init__(node, address=address)
        self.begun = 0
        self.is_gone = False

    def chat(self, head, frames):
        self.begun += 1
        if self.is_gone:
            raise ConnectFailed("Nobody is there.")
        return super().chat(head, frames)


@asynccontextmanager
async def _two_replicas(cloud, tmp_path, guard=None, **limits):
    """Two nodes of one fleet, a client for both, and its roads, the preferred one first."""
    admission = AdmissionLimits(**limits)
    async with (
        cloud.world(tmp_path, admission=admission) as one,
        cloud.world(tmp_path, admission=admission) as other,
    ):
        key = cloud.device_key()
        await one.enrolled(key=key)
        worlds = {"memory:a": one, "memory:b": other}
        roads = {name: Counting(here.node, name) for name, here in worlds.items()}
        options = RemoteOptions(guard=guard or GuardOptions())
        engine = RemoteEngine(list(roads.values()), one.policy, key, options, clock=one.clock)
        first, second = engine.addresses
        yield engine, worlds[first], (roads[first], roads[second])
        await engine.aclose()


async def test_a_node_that_sheds_sends_the_request_to_its_neighbour(cloud, tmp_path):
    async with _two_replicas(cloud, tmp_path, max_streams=1) as (engine, preferred, roads):
        release = preferred.admission.room.take(b"d" * 32, Demand("echo"))
        request = cloud.ask(TEXT)
        assert cloud.text_of(await cloud.collect(engine, request)) == f"echo: {TEXT}"
        assert engine.moves(request.id) == (f"cloud {roads[0].address} -> cloud: busy",)
        release()
        again = cloud.ask(TEXT)
        assert cloud.text_of(await cloud.collect(engine, again)) == f"echo: {TEXT}"
        assert engine.moves(again.id) == ()


async def test_a_node_that_stands_alone_says_that_it_is_full_and_until_when(cloud, tmp_path):
    full = AdmissionLimits(max_streams=1)
    async with cloud.world(tmp_path, admission=full) as here:
        engine = await here.enrolled()
        here.admission.room.take(b"d" * 32, Demand("echo"))
        with pytest.raises(BusyError) as caught:
            await cloud.collect(engine, cloud.ask(TEXT))
        assert caught.value.reason == "QUEUE_FULL"
        assert caught.value.retry_after_s == full.retry_after_s


class Restarting(Cutting):
    """Its node is gone from the first cut on, until it was asked ``absent`` times."""

    absent = 0

    def chat(self, head, frames):
        if self.begun and self.absent:
            self.absent -= 1
            raise ConnectFailed("Nobody is there.")
        return super().chat(head, frames)


@pytest.mark.parametrize("comes_back", [True, False])
async def test_an_answer_waits_for_nodes_that_are_replaced(cloud, tmp_path, comes_back):
    """Both nodes are gone at once: more tries than a request has find nobody."""
    async with await _world(cloud, tmp_path) as here:
        key = cloud.device_key()
        await here.enrolled(key=key)
        roads = [Restarting(here.node, 8, resumes=False, address=f"memory:{n}") for n in "ab"]
        guard = GuardOptions(open_after=1 << 30, throttle_from=1 << 30)
        options = RemoteOptions(guard=guard, retry_pause_s=0.001, rest_wait_s=0.5)
        engine = RemoteEngine(roads, here.policy, key, options, clock=here.clock)
        for road in roads:
            road.begun, road.absent = 1, 5 if comes_back else 10**9
        next(road for road in roads if road.address == engine.address).begun = 0
        request = cloud.ask(TEXT, max_tokens=100)
        if comes_back:
            chunks = await cloud.collect(engine, request)
            assert cloud.text_of(chunks) == f"echo: {TEXT}"
            assert len(engine.moves(request.id)) > options.max_tries
        else:
            with pytest.raises(ConnectFailed) as caught:
                await cloud.collect(engine, request)
            assert f"echo: {TEXT}".startswith(caught.value.partial)
            assert caught.value.partial
        await engine.aclose()


async def test_a_quota_that_is_spent_is_spent_at_every_replica(cloud, tmp_path):
    async with _two_replicas(cloud, tmp_path, quota_tokens=20) as (engine, _, roads):
        for _ in range(30):  # more than the throttle and the circuit let pass of refusals
            with pytest.raises(BusyError) as caught:
                await cloud.collect(engine, cloud.ask(TEXT, max_tokens=100))
            assert caught.value.reason == "QUOTA"
        assert [road.begun for road in roads] == [30, 0]


async def test_fresh_evidence_is_waited_for_when_many_ask(cloud, tmp_path, monkeypatch):
    class Rushed(MemoryTransport):
        refusals = 2

        async def challenge(self, nonce):
            if self.refusals:
                self.refusals -= 1
                raise BusyError("Too many challenges.", mend="Wait.", retry_after_s=0.01)
            return await super().challenge(nonce)

    async with cloud.world(tmp_path) as here:
        assert here.policy.freshness == "nonce"
        road = Rushed(here.node)
        await here.client(road).attest()
        assert road.refusals == 0
        road.refusals = 10_000
        monkeypatch.setattr("overspill.replica.CHALLENGE_WAIT_S", 0.05)
        with pytest.raises(BusyError):
            await here.client(road).attest()


async def test_a_slow_reader_holds_no_more_than_his_queue(cloud, tmp_path):
    made = []

    class Flood(FakeEngine):
        async def _generate(self, request):
            for number in range(100_000):
                made.append(number)
                yield Chunk("word " * 20, (1,))

    limits = StreamLimits(max_queued_bytes=2048)
    async with cloud.world(tmp_path, Flood(name="flood"), streams=limits) as here:
        engine = await here.enrolled()
        stream = engine.generate(cloud.ask(TEXT))
        await anext(stream)
        (answer,) = here.node._live._answers.values()
        while answer.run.queued_bytes < limits.max_queued_bytes:
            await anyio.lowlevel.checkpoint()
        before = len(made)
        for _ in range(200):
            await anyio.lowlevel.checkpoint()
        assert len(made) == before
        assert answer.run.queued_bytes < 2 * limits.max_queued_bytes
        await stream.aclose()


def test_a_ring_holds_little_beside_its_bytes():
    """A hundred bytes of frame took two hundred of memory."""
    ring = FrameRing(1 << 20, 100.0, time.monotonic)
    tracemalloc.start()
    for number in range(2000):
        ring.append(number.to_bytes(2, "big") * 50)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ring.size_bytes == 200_000
    assert taken < 1.5 * ring.size_bytes
    assert ring.read(1999) == (1999).to_bytes(2, "big") * 50


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=60), limit=st.integers(1, 400))
@settings(deadline=None)
def test_a_ring_keeps_the_newest_frames_within_its_bytes(sizes, limit):
    ring = FrameRing(limit, 100.0, lambda: 0.0)
    frames = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    for frame in frames:
        ring.append(frame)
    kept = 0
    for index, frame in enumerate(frames):
        try:
            assert ring.read(index) == frame
            kept += len(frame)
        except FrameGone:
            assert kept == 0, "a gap among what is kept"
    assert kept == ring.size_bytes
    assert kept <= limit or kept == len(frames[-1])
    assert ring.read(len(frames)) is None
    with pytest.raises(FrameGone):
        ring.read(len(frames) + 1)


def test_a_ring_forgets_what_is_old():
    now = [0.0]
    ring = FrameRing(1000, 10.0, lambda: now[0])
    ring.append(b"old")
    now[0] = 11.0
    ring.append(b"new")
    with pytest.raises(FrameGone):
        ring.read(0)
    assert ring.read(1) == b"new"


LIMITS = AdmissionLimits(max_streams=8, max_streams_per_device=8, kv_queue_factor=2.0)


def _take_all(room, demand):
    taken = []
    while True:
        try:
            taken.append(room.take(bytes(len(taken)), demand))
        except BusyError as error:
            return taken, error.reason


def test_the_batch_lane_leaves_the_last_quarter_to_people():
    room = Room(LIMITS)
    taken, reason = _take_all(room, Demand("m", "batch"))
    assert (len(taken), reason) == (6, "QUEUE_FULL")
    more, reason = _take_all(room, Demand("m", "interactive"))
    assert (len(more), reason) == (2, "QUEUE_FULL")
    for release in (*taken, *more, *taken):
        release()
    assert room.streams == 0


def test_the_cache_is_counted_and_one_that_is_alone_is_the_engines_to_judge():
    room = Room(LIMITS)
    taken, reason = _take_all(room, Demand("m", "interactive", 500, 1000))
    assert (len(taken), reason) == (4, "KV_FULL")
    room.take(b"other model", Demand("n", "interactive", 500, 1000))
    for release in taken:
        release()
    room.take(b"huge", Demand("m", "interactive", 10_000, 1000))


def test_a_device_has_its_share():
    room = Room(AdmissionLimits(max_streams_per_device=1))
    room.take(b"d", Demand("m"))
    with pytest.raises(BusyError) as caught:
        room.take(b"d", Demand("m"))
    assert caught.value.reason == "QUOTA"


async def test_failover_to_a_neighbour_asks_no_budget_while_a_node_is_replaced(cloud, tmp_path):
    """A rolling upgrade has more requests meet a leaving node than second tries are allowed."""
    async with _two_replicas(cloud, tmp_path) as (engine, preferred, roads):
        await preferred.node.drain(0.0)
        for _ in range(30):
            assert cloud.text_of(await cloud.collect(engine, cloud.ask(TEXT))) == f"echo: {TEXT}"
        assert roads[0].begun < 5  # it said so once, and is left alone for a while
        assert roads[1].begun == 30


async def test_a_neighbour_is_asked_without_a_budget_where_nobody_was_there(cloud, tmp_path):
    patient = GuardOptions(open_after=1000, throttle_from=1000)
    async with _two_replicas(cloud, tmp_path, patient) as (engine, _, roads):
        roads[0].is_gone = True
        for _ in range(30):
            assert cloud.text_of(await cloud.collect(engine, cloud.ask(TEXT))) == f"echo: {TEXT}"
        assert [road.begun for road in roads] == [30, 30]


async def test_a_link_that_is_down_for_a_moment_fails_no_new_request(cloud, tmp_path):
    class Down(MemoryTransport):
        until_s = 0.0

        def chat(self, head, frames):
            if time.monotonic() < self.until_s:
                raise ConnectFailed("The link is down.")
            return super().chat(head, frames)

    async with cloud.world(tmp_path) as here:
        road = Down(here.node)
        engine = await here.enrolled(road)
        await engine.attest()
        road.until_s = time.monotonic() + 0.5
        assert cloud.text_of(await cloud.collect(engine, cloud.ask(TEXT))) == f"echo: {TEXT}"
