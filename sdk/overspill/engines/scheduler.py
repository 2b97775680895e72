"""One scheduler per loaded model, on its own thread: continuous batching over a backend.

Sequences join and leave between steps. A step takes one token of each decoding sequence first
and fills the rest of its token budget with chunks of waiting prompts, round-robin, so a long
prompt never stops the others. All tokens of a step reach an event loop with one wake-up.
"""

from __future__ import annotations

import atexit
import copy
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace

from overspill.engines.admission import AdmissionQueue, KvReservations
from overspill.engines.answer_stream import Outbox
from overspill.engines.backend import Backend, BatchRow, Interrupted
from overspill.engines.deadlines import check_reachable, first_limit_s, too_late
from overspill.engines.generation import Generation
from overspill.engines.options import SchedulerOptions
from overspill.engines.prefix_cache import find_leader
from overspill.engines.scheduler_parts import Parts, open_parts
from overspill.engines.step_costs import StepCosts
from overspill.engines.thread_end import join_native
from overspill.errors import BusyError, EngineDied, EngineError, OverspillError

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
        self._outbox = Outbox(self._options.gather_s, clock)
        self._costs = StepCosts()
        self._parts: Parts | None = None
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
            status = SchedulerStatus(
                alive=self._thread.is_alive() and self._died is None,
                moved_s_ago=self._clock() - self._moved_s,
                active=len(self._running),
                queued=len(self._queue),
                kv_tokens_reserved=self._kv.reserved,
                kv_tokens=self._kv.kv_tokens,
            )
            parts = self._parts
        return status if parts is None else replace(status, **parts.status())

    @property
    def draft_bytes(self) -> int:
        """What the draft model was estimated to take; 0 without one."""
        return 0 if self._parts is None else self._parts.draft_bytes

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user has to know of how it runs the model."""
        return () if self._parts is None else self._parts.notes

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
        if self._parts is not None:
            self._parts.backend.interrupt()

    def _known_prefix(self, generation: Generation) -> int:
        if self._parts is None or first_limit_s(generation) is None:
            return 0
        return self._parts.prefixes.known(generation.prefix_key, generation.prompt)

    def _refuse_hopeless(self, generation: Generation, computed: int) -> None:
        check_reachable(
            generation,
            [*self._prefilling, *self._queue.ahead_of(generation.lane)],
            computed=computed,
            chunk_tokens=self._options.prefill_chunk_tokens,
            tokens_per_s=self._costs.prefill_tokens_per_s,
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
            parts = open_parts(
                self._open_backend,
                self._open_draft,
                self._options,
                self._costs,
                deliver=self._outbox.put,
                wake=self._wake_up,
                clock=self._clock,
            )
        except BaseException as error:
            # Whatever loading raises belongs to the caller of start().
            self._end(_died(error))
            self._loaded.set_exception(error)
            return
        self._kv = KvReservations(parts.backend.kv_tokens, parts.backend.max_sequences)
        self._parts = parts
        self._loaded.set_result(parts.backend)
        try:
            while self._wait_for_work(parts):
                self._step(parts)
            self._end(None)
        except BaseException as error:
            # The thread's end must reach everyone who waits for it.
            self._end(_died(error))
        finally:
            parts.close()

    def _wait_for_work(self, parts: Parts) -> bool:
        with self._wake:
            while not (self._closing or self._running or len(self._queue)):
                parts.runner.rest()
                self._moved_s = self._clock()
                self._wake.wait(timeout=1.0)
            parts.runner.resume()
            if not self._running:
                self._wake.wait_for(lambda: self._closing or not self._expected, GATHER_S)
            self._moved_s = self._clock()
            return not self._closing

    def _step(self, parts: Parts) -> None:
        self._drop_left_and_late(parts)
        self._admit(parts)
        if self._followers:
            self._catch_up(parts)
        batch = parts.planner.plan(self._running, self._prefilling)
        if any(not generation.is_decoding for generation, _ in batch):
            self._flush(parts)  # what waited for a step like the last: this one computes prompts
        started_s = self._clock()
        if batch:
            self._run(parts, batch)
        step_s = self._clock() - started_s
        self._flush(parts, step_s, step_s if batch and self._running else math.inf)
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

    def _encode(self, parts: Parts, generation: Generation) -> None:
        """Have the pictures encoded that its slot lacks, unless somebody computes them for it."""
        if parts.encoder is not None and generation.leader is None:
            parts.encoder.put(generation)

    def _drop_left_and_late(self, parts: Parts) -> None:
        now_s = self._clock()
        with self._wake:
            late = [g for g in self._queue.items() if g.is_late(now_s)]
            for generation in late:
                self._queue.remove(generation)
        for generation in late:
            self._fail(generation, too_late(generation))
        for generation in list(self._running):
            if generation.cancelled:
                self._leave(parts, generation)
            elif generation.is_late(now_s):
                self._fail(generation, too_late(generation))
                self._leave(parts, generation)
            elif generation.pictures is not None and generation.pictures.failure is not None:
                generation.failure = generation.pictures.failure
                self._leave(parts, generation)

    def _admit(self, parts: Parts) -> None:
        now_s = self._clock()
        while (newcomer := self._next_admitted(now_s)) is not None:
            free = [newcomer.slot, *self._kv.free_slots]
            slot, tokens = parts.prefixes.place(newcomer, free, self._running)
            with self._wake:
                self._kv.exchange(newcomer.slot, slot)
                newcomer.slot, newcomer.computed = slot, tokens
            newcomer.cached_tokens = tokens
            self._follow(newcomer)
            self._encode(parts, newcomer)
            parts.prefixes.shrink(self._kv.kv_tokens - self._kv.reserved)

    def _next_admitted(self, now_s: float) -> Generation | None:
        with self._wake:
            head = self._queue.head(now_s, self._adapter_fits)
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

    def _catch_up(self, parts: Parts) -> None:
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
            self._encode(parts, follower)

    def _run(self, parts: Parts, batch: list[tuple[Generation, BatchRow]]) -> None:
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
        failures = [g.failure for g in members if isinstance(g.failure, EngineError)]
        if len(failures) == len(members) > 1:
            # Several requests are hardly at fault at once: the model is.
            self._fail_step(parts, members, failures[0])
            return
        if len(failures) < len(members):
            self._failed_steps = 0
        for generation in members:
            if generation.ended:
                # What is no number in a cache would spoil whoever goes on from there.
                intact = not isinstance(generation.failure, EngineError)
                self._leave(parts, generation, intact=intact)

    def _leave(self, parts: Parts, generation: Generation, *, intact: bool = True) -> None:
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

    def _fail_step(self, parts: Parts, members: Iterable[Generation], error: EngineError) -> None:
        """A failed step leaves the cache of its members unknown: they end, the others go on."""
        self._failed_steps += 1
        if self._failed_steps >= self._options.max_failed_steps:
            raise error
        for generation in members:
            if not generation.ended:
                self._fail(generation, error)
            self._leave(parts, generation, intact=False)

    def _flush(self, parts: Parts, step_s: float = 0.0, next_s: float = math.inf) -> None:
        """Hand over what a step of ``step_s`` gave, and may not wait for one of ``next_s``."""
        fills_cores = parts.threads is not None and step_s >= SHORT_STEP_S
        settle_s = min(SETTLE_S, SETTLE_SHARE * step_s) if fills_cores else 0.0
        lost = set(self._outbox.flush(settle_s, next_s))
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


def _closed() -> EngineDied:
    return EngineDied("The engine was closed.", mend="Start it again.")


def _died(error: BaseException) -> EngineDied:
    return EngineDied(
        f"The engine's thread ended: {type(error).__name__}: {error}",
        mend="Start the engine again; `overspill doctor` checks the installation.",
    )
