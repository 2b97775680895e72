"""One scheduler per loaded model, on its own thread: continuous batching over a backend.

Sequences join and leave between steps. A step takes one token of each decoding sequence first
and fills the rest of its token budget with chunks of waiting prompts, round-robin, so a long
prompt never stops the others. All tokens of a step reach an event loop with one wake-up.
"""

from __future__ import annotations

import atexit
import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from overspill.engines.admission import AdmissionQueue, KvReservations, least_prefill_tokens
from overspill.engines.answer_stream import Outbox
from overspill.engines.backend import Backend, BatchRow, Interrupted
from overspill.engines.drafts import DraftModel
from overspill.engines.generation import Generation
from overspill.engines.machine_load import LoadMeter, ThreadControl
from overspill.engines.options import SchedulerOptions
from overspill.engines.picture_encoder import PictureEncoder
from overspill.engines.prefix_cache import PrefixCache, find_leader
from overspill.engines.speculation import Speculator
from overspill.engines.step_costs import StepCosts
from overspill.engines.step_plan import StepPlanner
from overspill.engines.step_runner import StepRunner
from overspill.engines.thread_end import join_native
from overspill.errors import BusyError, DeadlineExceeded, EngineDied, EngineError, OverspillError

SETTLE_S, SETTLE_SHARE = 0.002, 0.15
"""So long, and so much of a step, at most, readers get before the next step takes all cores."""
SHORT_STEP_S = 0.001
"""The smallest models, which leave cores free, take less."""
PICTURE_WAIT_S = 0.05

GATHER_S = 0.01
"""So long, at most, an idle thread waits for requests whose prompts are being tokenized: one step
for all is cheaper than a first step for one."""


@dataclass(frozen=True, slots=True)
class SchedulerStatus:
    """A snapshot: ``moved_s_ago`` is the time since the thread last did anything."""

    alive: bool
    moved_s_ago: float
    active: int
    queued: int
    kv_tokens_reserved: int
    kv_tokens: int
    prefix_cache_bytes: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    threads: int = 0
    """CPU threads now; 0 where they are not chosen by load."""
    draft_problem: str = ""
    """Why the draft model that was asked for makes no drafts."""


class Scheduler:
    """Runs generations over one backend. Public methods may be called from any thread."""

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        options: SchedulerOptions | None = None,
        *,
        open_draft: Callable[[], Backend] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_backend = open_backend
        self._open_draft = open_draft
        self._options = options or SchedulerOptions()
        self._clock = clock
        self._wake = threading.Condition()
        self._queue: AdmissionQueue[Generation] = AdmissionQueue(
            ageing_s=self._options.batch_ageing_s
        )
        self._running: list[Generation] = []
        self._prefilling: deque[Generation] = deque()
        self._followers: list[Generation] = []
        self._expected = 0
        self._in_batch: tuple[Generation, ...] = ()
        self._kv = KvReservations(0, 0)
        self._outbox = Outbox()
        self._costs = StepCosts()
        self._backend: Backend | None = None
        self._prefixes: PrefixCache | None = None
        self._speculator: Speculator | None = None
        self._draft_problem = ""
        self._threads: ThreadControl | None = None
        self._encoder: PictureEncoder | None = None
        self._closing = False
        self._died: EngineDied | None = None
        self._moved_s = clock()
        self._failed_steps = 0
        self._loaded: Future[Backend] = Future()
        self._thread = threading.Thread(target=self._main, name="overspill-scheduler", daemon=True)

    # --- any thread ---------------------------------------------------------------------------

    def start(self) -> Future[Backend]:
        """Start the thread, which opens the backend; the future holds it, or its typed error."""
        # The interpreter's end unwinds a daemon thread wherever it is, and C++ aborts the process
        # when that is inside a runtime: so the thread ends before, though nobody called close().
        atexit.register(self._close_at_exit)
        self._thread.start()
        return self._loaded

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Around preparing a request that is submitted next: an idle thread waits for it a moment.

        Its end wakes nobody: ``submit`` does.
        """
        with self._wake:
            self._expected += 1
        try:
            yield
        finally:
            with self._wake:
                self._expected -= 1

    def submit(self, generation: Generation) -> None:
        """Queue a request.

        Raises :class:`BusyError` when the queue is full, :class:`DeadlineExceeded` when even
        computing the prompts ahead takes longer than its deadline, :class:`EngineDied` when the
        thread is gone.
        """
        computed = self._known_prefix(generation)
        with self._wake:
            if self._died is not None or self._closing:
                raise copy.copy(self._died) if self._died else _closed()
            if len(self._queue) >= self._options.max_queued:
                raise BusyError(
                    f"The queue is full: {len(self._queue)} requests wait.",
                    mend="Try again later.",
                    retry_after_s=1.0,
                )
            self._refuse_hopeless(generation, computed)
            self._queue.push(generation)
            self._wake.notify()

    def cancel(self, generation: Generation) -> None:
        """Stop a request in whatever state it is; does nothing once it has ended."""
        with self._wake:
            generation.cancelled = True
            if self._queue.remove(generation):
                generation.ended = True
            elif self._in_batch and all(member.cancelled for member in self._in_batch):
                self._interrupt()
            self._wake.notify()

    def queue_position(self, generation: Generation) -> int | None:
        """How many wait ahead of it; None when it isn't queued."""
        with self._wake:
            return self._queue.position(generation)

    def status(self) -> SchedulerStatus:
        """What it does now."""
        with self._wake:
            return SchedulerStatus(
                alive=self._thread.is_alive() and self._died is None,
                moved_s_ago=self._clock() - self._moved_s,
                active=len(self._running),
                queued=len(self._queue),
                kv_tokens_reserved=self._kv.reserved,
                kv_tokens=self._kv.kv_tokens,
                prefix_cache_bytes=0 if self._prefixes is None else self._prefixes.host_bytes,
                drafted_tokens=0 if self._speculator is None else self._speculator.drafted,
                accepted_tokens=0 if self._speculator is None else self._speculator.accepted,
                threads=0 if self._threads is None else self._threads.threads,
                draft_problem=self._draft_problem
                or (self._speculator.draft_problem if self._speculator else ""),
            )

    @property
    def draft_bytes(self) -> int:
        """What the draft model was estimated to take; 0 without one."""
        draft_model = None if self._speculator is None else self._speculator.draft_model
        return 0 if draft_model is None else draft_model.memory_bytes

    def is_stuck(self) -> bool:
        """Whether the thread hasn't moved for longer than ``stall_after_s``."""
        return self.status().moved_s_ago > self._options.stall_after_s

    def close(self, timeout_s: float = 10.0) -> None:
        """End all requests, free the backend, and wait for the thread."""
        with self._wake:
            self._closing = True
            self._interrupt()
            self._wake.notify()
        if self._thread.is_alive():
            join_native(self._thread, timeout_s)

    def _close_at_exit(self) -> None:
        # In a forked child there is no such thread, and its locks may be held for ever.
        if self._thread.is_alive():
            self.close()

    def _interrupt(self) -> None:
        if self._backend is not None:
            self._backend.interrupt()

    def _known_prefix(self, generation: Generation) -> int:
        if self._prefixes is None or _first_limit_s(generation) is None:
            return 0
        return self._prefixes.known(generation.prefix_key, generation.prompt)

    def _refuse_hopeless(self, generation: Generation, computed: int) -> None:
        limit_s, rate = _first_limit_s(generation), self._costs.prefill_tokens_per_s
        if limit_s is None or rate is None:
            return
        ahead = [*self._prefilling, *self._queue.ahead_of(generation.lane)]
        # A lower bound: decoding, and waiting for a free slot, come on top.
        tokens = least_prefill_tokens(
            len(generation.prompt) - computed,
            (len(g.prompt) - g.computed for g in ahead if g.leader is None),
            self._options.prefill_chunk_tokens,
        )
        if tokens / rate > limit_s:
            raise DeadlineExceeded(
                f"The first token would take at least {tokens / rate:.1f} s; {limit_s:g} s were "
                "allowed.",
                mend="Allow more time, or another route.",
                retry_after_s=tokens / rate,
            )

    # --- the scheduler's thread ---------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._serve()
        finally:
            atexit.unregister(self._close_at_exit)

    def _serve(self) -> None:
        # From here on nobody who waits for the loading can cancel it: he leaves alone.
        self._loaded.set_running_or_notify_cancel()
        try:
            parts = self._open()
        except BaseException as error:
            # Whatever loading raises belongs to the caller of start().
            self._end(_died(error))
            self._loaded.set_exception(error)
            return
        self._loaded.set_result(parts.backend)
        try:
            while self._wait_for_work():
                self._step(parts)
            self._end(None)
        except BaseException as error:
            # The thread's end must reach everyone who waits for it.
            self._end(_died(error))
        finally:
            if self._encoder is not None:
                self._encoder.close()
            if self._speculator is not None:
                self._speculator.close()
            parts.backend.close()

    def _open(self) -> _Parts:
        backend = self._open_backend()
        try:
            speculator = self._open_speculator(backend)
        except BaseException:
            backend.close()
            raise
        adapters = bool(backend.abilities.adapters)
        planner = StepPlanner(
            self._options,
            self._costs,
            batch_tokens=backend.batch_tokens,
            adapters=adapters,
            propose=None if speculator is None else speculator.propose,
        )
        self._kv = KvReservations(backend.kv_tokens, backend.max_sequences)
        self._prefixes = PrefixCache(backend, max_bytes=self._options.prefix_cache_bytes)
        self._speculator, self._backend = speculator, backend
        if backend.abilities.vision is not None:
            self._encoder = PictureEncoder(backend.abilities.vision, self._wake_up)
        if backend.abilities.most_threads > 1:
            self._threads = ThreadControl(backend, LoadMeter(clock=self._clock))
        runner = StepRunner(
            backend,
            self._costs,
            speculator,
            self._threads,
            adapters=adapters,
            deliver=self._outbox.put,
            clock=self._clock,
        )
        return _Parts(backend, self._prefixes, planner, runner)

    def _open_speculator(self, backend: Backend) -> Speculator | None:
        if self._options.speculation == "off" or not backend.abilities.cuts:
            if self._open_draft is not None:
                off = self._options.speculation == "off"
                why = "speculation is off" if off else "the model's cache cannot be cut"
                self._draft_problem = f"The draft model is not used: {why}."
            return None
        draft_model = None
        if self._open_draft is not None:
            draft_model = DraftModel(self._open_draft())
            try:
                draft_model.check_same_tokenizer(backend)
            except BaseException:
                draft_model.close()
                raise
        return Speculator(self._options, self._costs, draft_model=draft_model, clock=self._clock)

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not (self._closing or self._running or len(self._queue)):
                self._moved_s = self._clock()
                self._wake.wait(timeout=1.0)
            if not self._running:
                self._wake.wait_for(lambda: self._closing or not self._expected, GATHER_S)
            self._moved_s = self._clock()
            return not self._closing

    def _step(self, parts: _Parts) -> None:
        self._drop_left_and_late(parts)
        self._admit(parts)
        if self._followers:
            self._catch_up(parts)
        batch = parts.planner.plan(self._running, self._prefilling)
        started_s = self._clock()
        if batch:
            self._run(parts, batch)
        self._flush(self._clock() - started_s)
        if not batch and self._running:
            self._wait_for_pictures()

    def _wake_up(self) -> None:
        with self._wake:
            self._wake.notify()

    def _wait_for_pictures(self) -> None:
        """All who run wait for a picture: who joins, leaves or is late is seen in between."""
        with self._wake:
            if not self._closing:
                self._wake.wait(timeout=PICTURE_WAIT_S)

    def _encode(self, generation: Generation) -> None:
        """Have the pictures encoded that its slot lacks, unless somebody computes them for it."""
        if self._encoder is not None and generation.leader is None:
            self._encoder.put(generation)

    def _drop_left_and_late(self, parts: _Parts) -> None:
        now_s = self._clock()
        with self._wake:
            late = [g for g in self._queue.items() if g.is_late(now_s)]
            for generation in late:
                self._queue.remove(generation)
        for generation in late:
            self._fail(generation, _too_late(generation))
        for generation in list(self._running):
            if generation.cancelled:
                self._leave(parts, generation)
            elif generation.is_late(now_s):
                self._fail(generation, _too_late(generation))
                self._leave(parts, generation)
            elif generation.pictures is not None and generation.pictures.failure is not None:
                generation.failure = generation.pictures.failure
                self._leave(parts, generation)

    def _admit(self, parts: _Parts) -> None:
        now_s = self._clock()
        while (newcomer := self._next_admitted(now_s)) is not None:
            free = [newcomer.slot, *self._kv.free_slots]
            slot, tokens = parts.prefixes.place(newcomer, free, self._running)
            with self._wake:
                self._kv.exchange(newcomer.slot, slot)
                newcomer.slot, newcomer.computed = slot, tokens
            newcomer.cached_tokens = tokens
            self._follow(newcomer)
            self._encode(newcomer)
            parts.prefixes.shrink(self._kv.kv_tokens - self._kv.reserved)

    def _next_admitted(self, now_s: float) -> Generation | None:
        with self._wake:
            head = self._queue.head(now_s)
            if head is None or not self._kv.fits(head.kv_tokens) or not self._adapter_fits(head):
                return None
            self._queue.admit(head, now_s)
            companions = {g.slot for g in self._running if g.adapter == head.adapter}
            head.slot = self._kv.take(head.kv_tokens, companions)
            head.admitted_s = now_s
            self._running.append(head)
            self._prefilling.append(head)
            return head

    def _adapter_fits(self, head: Generation) -> bool:
        running = {generation.adapter for generation in self._running}
        return head.adapter in running or len(running) < self._options.max_adapters

    def _follow(self, newcomer: Generation) -> None:
        """Let somebody who is about to compute the same prefix do it for both."""
        leader, tokens = find_leader(newcomer, self._running)
        if leader is not None:
            newcomer.leader, newcomer.leader_tokens = leader, tokens
            self._followers.append(newcomer)

    def _catch_up(self, parts: _Parts) -> None:
        """Copy for followers what is there by now; whose leader left inherits and goes on alone."""
        for follower in list(self._followers):
            leader, tokens = follower.leader, follower.leader_tokens
            if leader is not None and not (follower.ended or leader.ended):
                if leader.computed < tokens:
                    continue
                if not parts.prefixes.catch_up(follower, leader, tokens):
                    tokens = 0
                follower.computed = follower.cached_tokens = tokens
            elif not follower.ended:
                follower.computed = follower.cached_tokens = parts.prefixes.inherit(
                    follower, self._running
                )
            follower.leader = None
            self._followers.remove(follower)
            self._encode(follower)

    def _run(self, parts: _Parts, batch: list[tuple[Generation, BatchRow]]) -> None:
        members = tuple(generation for generation, _ in batch)
        with self._wake:
            if self._closing or all(member.cancelled for member in members):
                return
            # Whoever leaves from here on interrupts this step, even before it has begun.
            parts.backend.rearm()
            self._in_batch = members
        try:
            parts.runner.run(batch)
        except Interrupted:
            # Everyone in the batch has left, or the engine closes.
            for generation in members:
                if not generation.cancelled:
                    self._fail(generation, _closed())
                self._leave(parts, generation, intact=False)
            return
        except EngineError as error:
            self._fail_step(parts, members, error)
            return
        finally:
            with self._wake:
                self._in_batch = ()
        self._failed_steps = 0
        for generation in members:
            if generation.ended:
                self._leave(parts, generation)

    def _leave(self, parts: _Parts, generation: Generation, *, intact: bool = True) -> None:
        """Free the slot and the reservation; what is computed stays there to be reused, unless
        a step broke off and left it unknown."""
        if generation.failure is not None:
            self._fail(generation, generation.failure)
        generation.ended = True
        if intact:
            parts.prefixes.keep(generation.slot, generation.prefix_key, generation.held_tokens)
        else:
            parts.backend.forget(generation.slot, 0)
        with self._wake:
            self._running.remove(generation)
            if generation in self._prefilling:
                self._prefilling.remove(generation)
            self._kv.give_back(generation.slot, generation.kv_tokens)

    def _fail(self, generation: Generation, error: OverspillError) -> None:
        generation.ended = True
        # Each stream gets its own error: it carries that stream's text.
        mine = copy.copy(error)
        mine.partial = generation.text.released
        self._outbox.put(generation.stream, mine)

    def _fail_step(self, parts: _Parts, members: Iterable[Generation], error: EngineError) -> None:
        """A failed step leaves the cache of its members unknown: they end, the others go on."""
        self._failed_steps += 1
        if self._failed_steps >= self._options.max_failed_steps:
            raise error
        for generation in members:
            if not generation.ended:
                self._fail(generation, error)
            self._leave(parts, generation, intact=False)

    def _flush(self, step_s: float) -> None:
        fills_cores = self._threads is not None and step_s >= SHORT_STEP_S
        lost = set(self._outbox.flush(min(SETTLE_S, SETTLE_SHARE * step_s) if fills_cores else 0.0))
        for generation in self._running if lost else ():
            if generation.stream in lost:
                generation.cancelled = True

    def _end(self, error: EngineDied | None) -> None:
        with self._wake:
            self._died = error
            self._closing = True
            left = [*self._running, *self._queue.items()]
            self._running.clear()
            self._prefilling.clear()
            self._followers.clear()
        for generation in left:
            self._fail(generation, error or _closed())
        self._outbox.flush()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the thread works with, once the backend is there."""

    backend: Backend
    prefixes: PrefixCache
    planner: StepPlanner
    runner: StepRunner


def _first_limit_s(generation: Generation) -> float | None:
    limits = (generation.request.first_token_s, generation.request.deadline_s)
    return min((limit for limit in limits if limit is not None), default=None)


def _too_late(generation: Generation) -> DeadlineExceeded:
    request = generation.request
    limit_s = request.deadline_s
    if not generation.tokens and request.first_token_s is not None:
        limit_s = request.first_token_s
    return DeadlineExceeded(
        f"The answer was not there within {limit_s:g} s "
        f"({len(generation.tokens)} of at most {generation.max_tokens} tokens were).",
        mend="Allow more time, ask for fewer tokens, or allow another route.",
    )


def _closed() -> EngineDied:
    return EngineDied("The engine was closed.", mend="Start it again.")


def _died(error: BaseException) -> EngineDied:
    return EngineDied(
        f"The engine's thread ended: {type(error).__name__}: {error}",
        mend="Start the engine again; `overspill doctor` checks the installation.",
    )
