"""The scheduler: who runs when, who waits, and that everybody who leaves frees what he held."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from overspill.engines.admission import AdmissionQueue, KvReservations
from overspill.engines.answer_stream import AnswerStream, Outbox
from overspill.engines.answer_text import AnswerText
from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.generation import Generation
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.sampling import TokenSampler
from overspill.engines.scheduled import ScheduledEngine
from overspill.engines.step_costs import StepCosts
from overspill.engines.step_plan import MIN_CHUNK_TOKENS, StepPlanner
from overspill.errors import BusyError, DeadlineExceeded, EngineDied, EngineError, InvalidRequest
from overspill.types.chat import Chunk, FinishReason, Message, Request

CHUNK = 64


class SteppedEcho(EchoBackend):
    """Echo that waits for leave before each step and keeps a list of what each step held."""

    def __init__(self, options=None, kv_tokens=None):
        super().__init__(options or EchoOptions(context_tokens=4096, batch_tokens=256))
        self._kv_tokens = kv_tokens or super().kv_tokens
        self._leave = threading.Semaphore(0)
        self.steps = []
        self.failures = []
        self.stepped = threading.Condition()

    @property
    def kv_tokens(self):
        return self._kv_tokens

    def run(self, rows):
        self._leave.acquire()
        with self.stepped:
            self.steps.append([(row.sequence, row.position, len(row.tokens)) for row in rows])
            self.stepped.notify_all()
        if self.failures:
            raise self.failures.pop()
        return super().run(rows)

    def allow(self, steps=10_000):
        self._leave.release(steps)

    def interrupt(self):
        super().interrupt()
        self.allow()


@dataclass
class Clock:
    """Time that passes when a test says so."""

    now_s: float = 0.0

    def __call__(self):
        return self.now_s


async def _until(condition):
    """Wait for another thread; a test that waits in vain ends by pytest's own timeout."""
    while not condition():  # noqa: ASYNC110 - the other side is a thread
        await asyncio.sleep(0.002)


def _ask(size, max_tokens=8, **options):
    return Request((Message("user", "x" * size),), max_tokens=max_tokens, **options)


def _generation(slot, prompt, computed=0):
    """One that runs, and decodes where its prompt is computed."""
    request = _ask(1)
    return Generation(
        request=request,
        prompt=prompt,
        max_tokens=8,
        sampler=TokenSampler(request.sampling, vocabulary_size=256),
        text=AnswerText(request),
        stream=None,
        submitted_s=0.0,
        slot=slot,
        computed=computed,
        tokens=[1] if computed else [],
    )


async def _collect(engine, request):
    return [chunk async for chunk in engine.generate(request)]


def _tokens(chunks):
    return sum(len(chunk.token_ids) for chunk in chunks)


@pytest.fixture
def backend():
    return SteppedEcho()


@pytest.fixture
async def engine(backend):
    async with _engine(backend) as running:
        yield running
        backend.allow()


def _engine(backend, clock=None, **options):
    settings_ = SchedulerOptions(prefill_chunk_tokens=CHUNK, **options)
    kwargs = {} if clock is None else {"clock": clock}
    return ScheduledEngine(
        lambda: backend,
        name="echo",
        runtime="echo",
        options=EngineOptions(scheduler=settings_),
        **kwargs,
    )


# --- who runs in a step -------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_long_prompt_never_stops_who_decodes(engine, backend):
    first = asyncio.create_task(_collect(engine, _ask(10, max_tokens=16)))
    backend.allow(1)
    await _until(lambda: len(backend.steps) == 1)
    long = asyncio.create_task(_collect(engine, _ask(1000, max_tokens=4)))
    await _until(lambda: engine.status().queued + engine.status().active == 2)
    backend.allow()
    await asyncio.gather(first, long)
    beside = [step for step in backend.steps if any(size > 1 for _, _, size in step[1:])]
    # Step after step: one token of the decoder first, then at most a chunk of the prompt.
    assert len(beside) >= 10
    assert all(step[0][2] == 1 and step[1][2] <= CHUNK for step in beside)


@pytest.mark.anyio
async def test_waiting_prompts_share_the_room_round_robin(engine, backend):
    asked = [asyncio.create_task(_collect(engine, _ask(600, max_tokens=1))) for _ in range(6)]
    await _until(lambda: engine.status().queued + engine.status().active == 6)
    backend.allow(1)
    await _until(lambda: backend.steps)
    mark = len(backend.steps)
    backend.allow()
    await asyncio.gather(*asked)
    done = {}
    for step in backend.steps[mark:]:
        assert sum(size for _, _, size in step) <= 256
        for sequence, position, size in step:
            done[sequence] = position + size
        started = [done.get(sequence, 0) for sequence in range(16) if sequence in done]
        # Nobody gets two chunks ahead of another who waits beside him.
        assert max(started) - min(started) <= 3 * CHUNK


@pytest.mark.anyio
async def test_beside_decoders_a_long_prompt_goes_in_chunks_that_keep_steps_short():
    """Steps take 1 ms and 0.1 ms a token, as seen by the engine's clock."""
    clock, backend = Clock(), EchoBackend(EchoOptions(batch_tokens=512))
    run, took, both, joined = backend.run, [], threading.Event(), threading.Event()

    def timed(rows):
        seconds = 0.001 + 0.0001 * sum(len(row.tokens) for row in rows)
        clock.now_s += seconds
        took.append((seconds, sum(len(row.tokens) == 1 for row in rows), len(rows)))
        if took[-1][1:] == (2, 2) and not both.is_set():
            both.set()
            joined.wait(30)  # the two would be done before this test's loop looks
        return run(rows)

    backend.run = timed
    options = EngineOptions(scheduler=SchedulerOptions(speculation="off"))
    engine = ScheduledEngine(
        lambda: backend, name="echo", runtime="echo", options=options, clock=clock
    )
    async with engine:
        await _collect(engine, _ask(1000, max_tokens=50))
        decoders = [asyncio.create_task(_collect(engine, _ask(400, max_tokens=400))) for _ in "xx"]
        await _until(both.is_set)
        idle_s = took[-1][0]
        long = asyncio.create_task(_collect(engine, _ask(4000, max_tokens=2)))
        await _until(lambda: engine.status().queued + engine.status().active == 3)
        joined.set()
        await asyncio.gather(*decoders, long)
    beside = [seconds for seconds, decoding, rows in took if (decoding, rows) == (2, 3)]
    assert beside
    assert max(beside) <= 3 * idle_s


@pytest.mark.anyio
async def test_who_comes_together_begins_with_one_step(engine, backend, monkeypatch):
    """Prompts are tokenized one after the other; the first does not go ahead of the rest."""
    tokenize, turns = backend.tokenize, itertools.count()

    def slowly(text, *, special=True):
        threading.Event().wait(0.001 * (next(turns) % 3))
        return tokenize(text, special=special)

    monkeypatch.setattr(backend, "tokenize", slowly)
    backend.allow()
    await asyncio.gather(*(_collect(engine, _ask(5, max_tokens=2)) for _ in range(4)))
    assert len(backend.steps[0]) == 4


@pytest.mark.anyio
async def test_a_step_holds_neighbouring_sequences_in_their_order(engine, backend):
    """Runtimes compute neighbours in one pass, and start another at each gap."""
    backend.allow()
    for _ in range(2):  # the second time the slots hold what the first left there
        await asyncio.gather(
            *(_collect(engine, _ask(40 + n, cache_scope="s")) for n in range(5)),
        )
    for step in backend.steps:
        sequences = [sequence for sequence, _, _ in step]
        assert sequences == sorted(sequences)
    assert [0, 1, 2, 3, 4] in [[sequence for sequence, _, _ in step] for step in backend.steps]


@pytest.mark.anyio
async def test_nobody_waits_for_a_request_that_is_refused(engine, backend):
    backend.allow()
    with pytest.raises(InvalidRequest):
        await _collect(engine, _ask(5, stop=("",)))
    assert await _collect(engine, _ask(5, max_tokens=2))


@given(decoding=st.integers(1, 15), waiting=st.integers(1, 15))
def test_a_step_with_prompts_stays_near_what_it_takes_once_all_decode(decoding, waiting):
    costs, options = StepCosts(), SchedulerOptions(prefill_stretch=2.5)
    row_s, fixed_s = 0.002, 0.01
    for rows in range(1, 32):
        costs.note(rows, 0, fixed_s + row_s * rows)
    costs.note(0, 512, 512 * row_s)
    writers = [_generation(n, [1] * 8, computed=8) for n in range(decoding)]
    newcomers = [_generation(decoding + n, [1] * 64) for n in range(waiting)]
    planner = StepPlanner(options, costs, batch_tokens=512)
    batch = planner.plan([*writers, *newcomers], deque(newcomers))
    prompt_tokens = sum(len(row.tokens) for _, row in batch[decoding:])
    took_s = fixed_s + row_s * (decoding + prompt_tokens)
    joined_s = fixed_s + row_s * (decoding + waiting)
    assert [row.tokens for _, row in batch[:decoding]] == [[1]] * decoding
    # All that was asked for, or as much as the stretch allows.
    assert took_s <= 2.5 * joined_s + 1e-9 or prompt_tokens == MIN_CHUNK_TOKENS
    assert prompt_tokens == 64 * waiting or took_s >= 2.5 * joined_s - 2 * row_s - fixed_s


@given(
    decoding=st.integers(4, 15),
    again_s=st.floats(0.0, 0.01),
    token_s=st.floats(0.002, 0.006),
)
def test_a_long_prompt_keeps_steps_near_that_where_short_chunks_are_dear(
    decoding, again_s, token_s
):
    """A chunk costs a second pass over the weights, and more a token than a whole prompt does."""
    costs, options = StepCosts(), SchedulerOptions()
    for rows in range(1, 32):
        costs.note(rows, 0, 0.01 + 0.002 * rows)
    costs.note(0, 512, 512 * 0.001)
    writers = [_generation(n, [1] * 8, computed=8) for n in range(decoding)]
    newcomer = _generation(decoding, [1] * 4000)
    planner = StepPlanner(options, costs, batch_tokens=512)
    for _ in range(40):
        batch = planner.plan([*writers, newcomer], deque([newcomer]))
        chunk = sum(len(row.tokens) for _, row in batch[decoding:])
        took_s = 0.01 + 0.002 * decoding + again_s + token_s * chunk
        costs.note(decoding, chunk, took_s)
    joined_s = 0.01 + 0.002 * (decoding + 1)
    assert took_s <= 1.1 * options.prefill_stretch * joined_s or chunk == MIN_CHUNK_TOKENS


@pytest.mark.anyio
async def test_streams_join_and_leave_between_steps(engine, backend):
    backend.allow()
    sizes = [3, 9, 27]
    answers = await asyncio.gather(
        *(_collect(engine, _ask(5, max_tokens=size)) for size in sizes),
    )
    assert [_tokens(chunks) for chunks in answers] == [3, 9, 11]
    assert engine.status().kv_tokens_reserved == 0


@pytest.mark.anyio
async def test_a_token_is_there_as_soon_as_its_step_is_done(engine, backend):
    stream = engine.generate(_ask(5, max_tokens=8))
    for letter in "echo":
        backend.allow(1)
        assert (await anext(stream)).text == letter
    await stream.aclose()


# --- who may start ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_admission_counts_kv_tokens_and_not_requests():
    backend = SteppedEcho(kv_tokens=400)
    async with _engine(backend) as engine:
        tasks = [asyncio.create_task(_collect(engine, _ask(100, max_tokens=50))) for _ in range(5)]
        await _until(lambda: engine.status().queued + engine.status().active == 5)
        backend.allow(1)
        await _until(lambda: engine.status().active == 2)
        status = engine.status()
        # About 180 tokens each: two fit into 400, though there are 16 sequences.
        assert (status.active, status.queued) == (2, 3)
        assert 0 < status.kv_tokens_reserved <= 400
        backend.allow()
        assert all(chunks[-1].finish for chunks in await asyncio.gather(*tasks))
        assert engine.status().kv_tokens_reserved == 0


@pytest.mark.anyio
async def test_the_queue_position_is_visible_and_counts_down(backend):
    async with _engine(SteppedEcho(kv_tokens=200)) as engine:
        backend = engine._open_backend()
        requests = [_ask(100, max_tokens=50, id=f"r{i}") for i in range(3)]
        tasks = []
        for n, request in enumerate(requests):
            tasks.append(asyncio.create_task(_collect(engine, request)))
            await _until(lambda n=n: engine.status().queued + engine.status().active == n + 1)
        await _until(lambda: engine.queue_position("r0") is None)
        assert [engine.queue_position(f"r{i}") for i in range(3)] == [None, 0, 1]
        backend.allow()
        await asyncio.gather(*tasks)
        assert [engine.queue_position(f"r{i}") for i in range(3)] == [None] * 3


@pytest.mark.anyio
async def test_a_full_queue_is_busy_and_says_when_to_come_back():
    backend = SteppedEcho(kv_tokens=200)
    async with _engine(backend, max_queued=1) as engine:
        running = asyncio.create_task(_collect(engine, _ask(100, max_tokens=50)))
        await _until(lambda: engine.status().active == 1)
        waiting = asyncio.create_task(_collect(engine, _ask(100, max_tokens=50)))
        await _until(lambda: engine.status().queued == 1)
        with pytest.raises(BusyError, match="queue is full") as caught:
            await _collect(engine, _ask(1))
        assert caught.value.retry_after_s
        backend.allow()
        await asyncio.gather(running, waiting)


@dataclass(eq=False)
class Item:
    lane: str
    submitted_s: float
    kv_tokens: int = 1


items = st.lists(
    st.builds(Item, st.sampled_from(["interactive", "batch"]), st.floats(0, 100)), max_size=12
)


@given(items, st.floats(0, 200))
def test_lanes_keep_their_order_and_age(waiting, now_s):
    queue = AdmissionQueue(ageing_s=30.0)
    for item in sorted(waiting, key=lambda item: item.submitted_s):
        queue.push(item)
    left, overtaken = [], False
    while (head := queue.head(now_s)) is not None:
        batch = [i for i in queue.items() if i.lane == "batch"]
        interactive = [i for i in queue.items() if i.lane == "interactive"]
        aged = bool(batch) and now_s - batch[0].submitted_s >= 30.0 and not overtaken
        assert head is (batch[0] if aged or not interactive else interactive[0])
        overtaken |= aged and bool(interactive)
        queue.admit(head, now_s)
        left.append(head)
    assert len(left) == len(waiting)
    assert not queue.remove(Item("batch", 0.0))


def test_neither_lane_starves_when_both_are_always_full():
    queue = AdmissionQueue(ageing_s=10.0)
    for n in range(400):
        queue.push(Item("batch", 0.0))
        queue.push(Item("interactive", float(n)))
    admitted = []
    for now_s in range(200):
        head = queue.head(float(now_s))
        queue.admit(head, float(now_s))
        admitted.append(head.lane)
    assert admitted.count("batch") == 19
    batch = [at for at, lane in enumerate(admitted) if lane == "batch"]
    assert batch[0] == 10
    assert {later - earlier for earlier, later in itertools.pairwise(batch)} == {10}


@given(st.lists(st.integers(1, 60), max_size=20))
def test_reservations_never_exceed_what_is_there(sizes):
    kv = KvReservations(kv_tokens=100, slots=3)
    held = []
    for size in sizes:
        while not kv.fits(size):
            kv.give_back(*held.pop(0))
        held.append((kv.take(size), size))
        assert kv.reserved == sum(s for _, s in held) <= 100
        assert len({slot for slot, _ in held}) == len(held) <= 3


# --- leaving, in every state --------------------------------------------------------------------


@pytest.mark.anyio
async def test_who_leaves_while_queued_is_gone_at_once():
    backend = SteppedEcho(kv_tokens=200)
    async with _engine(backend) as engine:
        running = asyncio.create_task(_collect(engine, _ask(100, max_tokens=50)))
        await _until(lambda: engine.status().active == 1)
        queued = asyncio.create_task(_collect(engine, _ask(100, max_tokens=50)))
        await _until(lambda: engine.status().queued == 1)
        queued.cancel()
        await asyncio.wait({queued})
        # No step was needed for it.
        assert (engine.status().queued, len(backend.steps)) == (0, 0)
        backend.allow()
        assert (await running)[-1].finish.reason is FinishReason.LENGTH


@pytest.mark.anyio
@pytest.mark.parametrize("steps", [2, 20])
async def test_who_leaves_in_prefill_or_decode_is_gone_within_a_step(engine, backend, steps):
    # 640 tokens are 10 chunks: after 2 steps it prefills, after 20 it decodes.
    staying = asyncio.create_task(_collect(engine, _ask(60, max_tokens=60)))
    await _until(lambda: engine.status().active == 1)
    leaving = asyncio.create_task(_collect(engine, _ask(600, max_tokens=100)))
    await _until(lambda: engine.status().active + engine.status().queued == 2)
    backend.allow(steps)
    await _until(lambda: len(backend.steps) == steps)
    leaving.cancel()
    await asyncio.wait({leaving})
    backend.allow(2)
    await _until(lambda: len(backend.steps) == steps + 2)
    # The step that was already planned may hold both; the one after it holds one.
    assert len(backend.steps[-1]) == 1
    backend.allow()
    await staying
    await _until(lambda: engine.status().active == 0)
    assert engine.status().kv_tokens_reserved == 0


@pytest.mark.anyio
async def test_leaving_a_step_that_runs_only_for_oneself_interrupts_it():
    backend = EchoBackend(EchoOptions(token_delay_s=3600.0))
    async with _engine(backend) as engine:
        leaving = asyncio.create_task(_collect(engine, _ask(5)))
        await _until(lambda: engine.status().active == 1)
        leaving.cancel()
        await asyncio.wait({leaving})
        await _until(lambda: engine.status().active == 0)


class LeftAtTheDoor(EchoBackend):
    """Whose only stream leaves just when its first step is about to begin."""

    leave = None

    def run(self, rows):
        if self.leave is not None:
            self.leave()
        return super().run(rows)


@pytest.mark.anyio
async def test_leaving_just_before_ones_step_begins_interrupts_it_too():
    backend = LeftAtTheDoor(EchoOptions(token_delay_s=3600.0))
    async with _engine(backend) as engine:
        scheduler = engine._scheduler
        left = []

        def leave():
            left.append(scheduler._running[0])
            scheduler.cancel(left[0])

        backend.leave = leave
        asked = asyncio.create_task(_collect(engine, _ask(5)))
        await _until(lambda: left and engine.status().active == 0)
        asked.cancel()


@pytest.mark.anyio
async def test_who_leaves_while_it_loads_does_not_stop_the_others():
    opened = threading.Event()

    def slowly():
        opened.wait()
        return EchoBackend()

    engine = ScheduledEngine(slowly, name="echo", runtime="echo")
    leaving, staying = (asyncio.create_task(_collect(engine, _ask(3))) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait({leaving})
    opened.set()
    assert (await staying)[-1].finish is not None
    await engine.aclose()


@pytest.mark.anyio
async def test_closing_ends_all_streams_with_an_error(backend):
    engine = _engine(backend)
    await engine.start()
    streams = [asyncio.create_task(_collect(engine, _ask(5))) for _ in range(3)]
    await _until(lambda: engine.status().active + engine.status().queued == 3)
    await engine.aclose()
    for stream in streams:
        with pytest.raises(EngineDied, match="closed"):
            await stream


# --- deadlines ----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_deadline_that_passes_hands_over_what_there_is(backend):
    clock = Clock()
    async with _engine(backend, clock) as engine:
        task = asyncio.create_task(_collect(engine, _ask(5, max_tokens=9, deadline_s=10.0)))
        backend.allow(4)
        await _until(lambda: len(backend.steps) == 4)
        clock.now_s = 11.0
        backend.allow()
        with pytest.raises(DeadlineExceeded, match="10 s") as caught:
            await task
        # Four steps were seen to begin; one more may have been planned.
        assert caught.value.partial in ("echo", "echo:")
        assert engine.status().active == 0


@pytest.mark.anyio
async def test_a_first_token_that_is_late_is_an_error_in_the_queue_too():
    clock, backend = Clock(), SteppedEcho(kv_tokens=200)
    async with _engine(backend, clock) as engine:
        running = asyncio.create_task(_collect(engine, _ask(100, max_tokens=50)))
        await _until(lambda: engine.status().active == 1)
        late = asyncio.create_task(_collect(engine, _ask(100, first_token_s=2.0)))
        await _until(lambda: engine.status().queued == 1)
        clock.now_s = 3.0
        backend.allow()
        with pytest.raises(DeadlineExceeded):
            await late
        assert (await running)[-1].finish is not None


@pytest.mark.anyio
async def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    clock = Clock()
    backend = SteppedEcho()
    run = backend.run

    def one_second_a_step(rows):
        clock.now_s += 1.0
        return run(rows)

    backend.run = one_second_a_step
    backend.allow()
    async with _engine(backend, clock) as engine:
        await _collect(engine, _ask(1000, max_tokens=1))
        before = len(backend.steps)
        with pytest.raises(DeadlineExceeded, match="at least") as caught:
            await _collect(engine, _ask(1000, first_token_s=5.0))
        assert caught.value.retry_after_s > 5.0
        assert len(backend.steps) == before
        # A short prompt is not held up by a long one, so it isn't refused for one either.
        long = asyncio.create_task(_collect(engine, _ask(3000, max_tokens=1)))
        await _until(lambda: len(backend.steps) > before)
        assert (await _collect(engine, _ask(10, max_tokens=1, first_token_s=30.0)))[-1].finish
        await long
        assert (await _collect(engine, _ask(1000, max_tokens=1, first_token_s=60.0)))[-1].finish


# --- when the backend fails ---------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_failed_step_ends_its_streams_and_nothing_else(backend):
    async with _engine(backend) as engine:
        task = asyncio.create_task(_collect(engine, _ask(5, max_tokens=9)))
        backend.allow(4)
        await _until(lambda: len(backend.steps) == 4)
        backend.failures.append(EngineError("the step failed"))
        backend.allow()
        with pytest.raises(EngineError, match="the step failed") as caught:
            await task
        assert caught.value.partial in ("echo", "echo:")
        assert (await _collect(engine, _ask(5)))[-1].finish is not None
        assert (await engine.health()).ok


@pytest.mark.anyio
@pytest.mark.parametrize("failure", [EngineError("broken"), RuntimeError("broken")])
async def test_a_backend_that_keeps_failing_is_a_dead_engine(backend, failure):
    backend.allow()
    async with _engine(backend, max_failed_steps=2) as engine:
        backend.failures += [failure] * 4
        for _ in range(2):
            with pytest.raises(EngineError):
                await _collect(engine, _ask(5))
        with pytest.raises(EngineDied, match="broken"):
            await _collect(engine, _ask(5))
        health = await engine.health()
        assert not health.ok
        assert "ended" in health.detail


@pytest.mark.anyio
async def test_health_means_that_the_thread_moves(backend):
    clock = Clock()
    async with _engine(backend, clock, stall_after_s=5.0) as engine:
        task = asyncio.create_task(_collect(engine, _ask(5)))
        await _until(lambda: engine.status().active == 1)
        clock.now_s = 6.0
        health = await engine.health()
        assert not health.ok
        assert "not moved" in health.detail
        backend.allow()
        await task
        assert (await engine.health()).ok


# --- any order of joins, leaves and cancels -----------------------------------------------------


class JoinsAndLeaves(RuleBasedStateMachine):
    """Streams over echo in any order: each gets its own text, and nothing stays reserved."""

    @initialize(
        sequences=st.integers(1, 3),
        batch_tokens=st.integers(3, 60),
        options=st.builds(
            SchedulerOptions,
            prefill_chunk_tokens=st.integers(1, 40),
            prefix_cache_bytes=st.sampled_from([0, 500, 1 << 20]),
            speculation=st.sampled_from(["auto", "always", "off"]),
            max_draft_tokens=st.integers(1, 8),
            max_adapters=st.integers(1, 3),
        ),
    )
    def begin(self, sequences, batch_tokens, options):
        self.loop = asyncio.new_event_loop()
        self.backend = EchoBackend(
            EchoOptions(
                context_tokens=300,
                max_sequences=sequences,
                batch_tokens=batch_tokens,
                adapters=("a", "b"),
            )
        )
        self.engine = ScheduledEngine(
            lambda: self.backend,
            name="echo",
            runtime="echo",
            options=EngineOptions(scheduler=options),
        )
        self.streams = []
        self.options = options
        self._run(self.engine.start())

    def _run(self, awaitable):
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, 30))

    @rule(
        text=st.text("abc ", min_size=1, max_size=80),
        options=st.fixed_dictionaries(
            {
                "max_tokens": st.integers(1, 60),
                "lane": st.sampled_from(["interactive", "batch"]),
                "app": st.sampled_from(["one", "other"]),
                "cache_scope": st.sampled_from([None, "talk"]),
                "adapter": st.sampled_from([None, "a", "b"]),
                "draft": st.sampled_from(["", "echo: abc abc abc", "<|im_end|>"]),
            }
        ),
        at_once=st.booleans(),
    )
    def join(self, text, options, at_once):
        request = Request((Message("user", text),), **options)
        stream = self.engine.generate(request)
        name = f"echo[{request.adapter}]: " if request.adapter else "echo: "
        if at_once:
            self._leave_at_once(stream)
            return
        # Started, so that it is in the queue; what it has said by now is kept.
        chunk = self._run(anext(stream))
        self.streams.append((stream, (name + text)[: request.max_tokens], [chunk]))

    def _leave_at_once(self, stream):
        """Leave while it is prepared, queued, or about to begin."""

        async def begin_and_leave():
            begun = asyncio.ensure_future(anext(stream))
            await asyncio.wait({begun}, timeout=0.001)
            begun.cancel()
            await asyncio.wait({begun})
            await stream.aclose()

        self._run(begin_and_leave())

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def read(self, data):
        stream, _, chunks = data.draw(st.sampled_from(self.streams))
        if chunks[-1].finish is None:
            chunks.append(self._run(anext(stream)))

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def leave(self, data):
        which = data.draw(st.integers(0, len(self.streams) - 1))
        stream, expected, chunks = self.streams.pop(which)
        self._run(stream.aclose())
        assert expected.startswith("".join(chunk.text for chunk in chunks))

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        for stream, expected, chunks in self.streams:
            while chunks[-1].finish is None:
                chunks.append(self._run(anext(stream)))
            assert "".join(chunk.text for chunk in chunks) == expected
            self._run(stream.aclose())
        self._run(_until(lambda: self.engine.status().active == 0))
        status = self.engine.status()
        assert (status.queued, status.kv_tokens_reserved) == (0, 0)
        slots = self.engine._scheduler._kv.free_slots
        assert sorted(slots) == list(range(self.backend.max_sequences))
        assert status.prefix_cache_bytes <= self.options.prefix_cache_bytes
        self._run(self.engine.aclose())
        self.loop.close()


TestJoinsAndLeaves = JoinsAndLeaves.TestCase
TestJoinsAndLeaves.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@pytest.mark.anyio
async def test_closing_while_it_loads_ends_who_waits_for_it():
    opened = threading.Event()
    backend = EchoBackend()
    closed = []
    backend.close = lambda: closed.append(True)

    def slowly():
        opened.wait()
        return backend

    engine = ScheduledEngine(slowly, name="echo", runtime="echo")
    waiting = asyncio.create_task(_collect(engine, _ask(3)))
    await _until(lambda: engine.status() is not None)
    closing = asyncio.create_task(engine.aclose())
    await _until(lambda: engine.status() is None)
    opened.set()
    await closing
    with pytest.raises(EngineDied, match="closed while it loaded"):
        await waiting
    assert closed


@pytest.mark.anyio
async def test_a_step_wakes_each_loop_once_and_names_streams_whose_loop_is_gone():
    gone = asyncio.new_event_loop()
    gone.close()
    lost, here = AnswerStream(gone), AnswerStream(asyncio.get_running_loop())
    outbox = Outbox()
    for text in ("a", "b"):
        outbox.put(lost, Chunk(text))
        outbox.put(here, Chunk(text, (ord(text),)))
    assert set(outbox.flush()) == {lost}
    assert outbox.flush() == []
    # Both came with one wake-up, so they are one chunk for the reader.
    chunk = await anext(here.chunks())
    assert (chunk.text, chunk.token_ids) == ("ab", (97, 98))


@pytest.mark.anyio
async def test_readers_have_their_tokens_before_the_next_step_takes_all_cores():
    stream, outbox, read = AnswerStream(asyncio.get_running_loop()), Outbox(), []

    async def reader():
        async for chunk in stream.chunks():
            read.append(chunk.text)  # noqa: PERF401 - each as it comes

    def step(text):
        outbox.put(stream, Chunk(text))
        outbox.flush(settle_s=60.0)
        return list(read)

    task = asyncio.create_task(reader())
    assert await asyncio.to_thread(step, "a") == ["a"]
    assert await asyncio.to_thread(step, "b") == ["a", "b"]
    task.cancel()


@pytest.mark.anyio
async def test_readers_who_are_busy_hold_nobody_up_for_ever():
    stream, outbox = AnswerStream(asyncio.get_running_loop()), Outbox()
    outbox.put(stream, Chunk("a"))
    # On the loop's own thread: while this waits, nobody reads.
    assert outbox.flush(settle_s=0.01) == []
    assert (await anext(stream.chunks())).text == "a"
