"""One scheduler per loaded model, on its own thread: continuous batching over a backend.

Sequences join and leave between steps. A step takes one token of each decoding sequence first
and fills the rest of its token budget with chunks of waiting prompts, round-robin, so a long
prompt never stops the others. All tokens of a step reach an event loop with one wake-up.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from overspill.engines.admission import AdmissionQueue, KvReservations
from overspill.engines.answer_stream import Outbox
from overspill.engines.backend import Backend, BatchRow, Interrupted
from overspill.engines.generation import Generation
from overspill.engines.options import SchedulerOptions
from overspill.engines.sampling import choose_tokens
from overspill.errors import BusyError, DeadlineExceeded, EngineDied, EngineError, OverspillError
from overspill.types.chat import Chunk

MIN_RATE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class SchedulerStatus:
    """A snapshot: ``moved_s_ago`` is the time since the thread last did anything."""

    alive: bool
    moved_s_ago: float
    active: int
    queued: int
    kv_tokens_reserved: int
    kv_tokens: int


class Scheduler:
    """Runs generations over one backend. Public methods may be called from any thread."""

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        options: SchedulerOptions | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_backend = open_backend
        self._options = options or SchedulerOptions()
        self._clock = clock
        self._wake = threading.Condition()
        self._queue: AdmissionQueue[Generation] = AdmissionQueue(
            ageing_s=self._options.batch_ageing_s
        )
        self._running: list[Generation] = []
        self._prefilling: deque[Generation] = deque()
        self._in_batch: tuple[Generation, ...] = ()
        self._kv = KvReservations(0, 0)
        self._outbox = Outbox()
        self._backend: Backend | None = None
        self._closing = False
        self._died: EngineDied | None = None
        self._moved_s = clock()
        self._prefill_tokens_per_s: float | None = None
        self._failed_steps = 0
        self._loaded: Future[Backend] = Future()
        self._thread = threading.Thread(target=self._main, name="overspill-scheduler", daemon=True)

    # --- any thread ---------------------------------------------------------------------------

    def start(self) -> Future[Backend]:
        """Start the thread, which opens the backend; the future holds it, or its typed error."""
        self._thread.start()
        return self._loaded

    def submit(self, generation: Generation) -> None:
        """Queue a request.

        Raises :class:`BusyError` when the queue is full, :class:`DeadlineExceeded` when even
        computing the prompts ahead takes longer than its deadline, :class:`EngineDied` when the
        thread is gone.
        """
        with self._wake:
            if self._died is not None or self._closing:
                raise copy.copy(self._died) if self._died else _closed()
            if len(self._queue) >= self._options.max_queued:
                raise BusyError(
                    f"The queue is full: {len(self._queue)} requests wait.",
                    mend="Try again later.",
                    retry_after_s=1.0,
                )
            self._refuse_hopeless(generation)
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
            )

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
            self._thread.join(timeout_s)

    def _interrupt(self) -> None:
        if self._backend is not None:
            self._backend.interrupt()

    def _refuse_hopeless(self, generation: Generation) -> None:
        limits = (generation.request.first_token_s, generation.request.deadline_s)
        limit_s = min((limit for limit in limits if limit is not None), default=None)
        if limit_s is None or self._prefill_tokens_per_s is None:
            return
        own, chunk = len(generation.prompt), self._options.prefill_chunk_tokens
        ahead = [*self._prefilling, *self._queue.ahead_of(generation.lane)]
        # A lower bound: round-robin, each of them gets as many chunks as this one, or all of its
        # own; decoding, and waiting for a free slot, come on top.
        shared = sum(max(0, min(own, len(g.prompt) - g.prefilled) - chunk) for g in ahead)
        least_s = (own + shared) / self._prefill_tokens_per_s
        if least_s > limit_s:
            raise DeadlineExceeded(
                f"The first token would take at least {least_s:.1f} s; {limit_s:g} s were allowed.",
                mend="Allow more time, or another route.",
                retry_after_s=least_s,
            )

    # --- the scheduler's thread ---------------------------------------------------------------

    def _main(self) -> None:
        # From here on nobody who waits for the loading can cancel it: he leaves alone.
        self._loaded.set_running_or_notify_cancel()
        try:
            backend = self._open_backend()
        except BaseException as error:
            # Whatever loading raises belongs to the caller of start().
            self._end(_died(error))
            self._loaded.set_exception(error)
            return
        self._kv = KvReservations(backend.kv_tokens, backend.max_sequences)
        self._backend = backend
        self._loaded.set_result(backend)
        try:
            while self._wait_for_work():
                self._step(backend)
            self._end(None)
        except BaseException as error:
            # The thread's end must reach everyone who waits for it.
            self._end(_died(error))
        finally:
            backend.close()

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not (self._closing or self._running or len(self._queue)):
                self._moved_s = self._clock()
                self._wake.wait(timeout=1.0)
            self._moved_s = self._clock()
            return not self._closing

    def _step(self, backend: Backend) -> None:
        self._drop_left_and_late(backend)
        self._admit()
        batch = self._plan(backend.batch_tokens)
        if batch:
            self._run(backend, batch)
        self._flush()

    def _drop_left_and_late(self, backend: Backend) -> None:
        now_s = self._clock()
        with self._wake:
            late = [g for g in self._queue.items() if g.is_late(now_s)]
            for generation in late:
                self._queue.remove(generation)
        for generation in late:
            self._fail(generation, _too_late(generation))
        for generation in list(self._running):
            if generation.cancelled:
                self._leave(backend, generation)
            elif generation.is_late(now_s):
                self._fail(generation, _too_late(generation))
                self._leave(backend, generation)

    def _admit(self) -> None:
        now_s = self._clock()
        with self._wake:
            while (head := self._queue.head(now_s)) and self._kv.fits(head.kv_tokens):
                self._queue.remove(head)
                head.slot = self._kv.take(head.kv_tokens)
                head.admitted_s = now_s
                self._running.append(head)
                self._prefilling.append(head)

    def _plan(self, budget: int) -> list[tuple[Generation, BatchRow]]:
        """Decode rows first, then prompt chunks in the room that is left, round-robin."""
        batch = [(g, _decode_row(g)) for g in self._running if g.is_decoding][:budget]
        room = budget - len(batch)
        for _ in range(len(self._prefilling)):
            if room <= 0:
                break
            generation = self._prefilling.popleft()
            row = _prefill_row(generation, min(room, self._options.prefill_chunk_tokens))
            room -= len(row.tokens)
            batch.append((generation, row))
            if not row.wants_logits:
                self._prefilling.append(generation)
        return batch

    def _run(self, backend: Backend, batch: list[tuple[Generation, BatchRow]]) -> None:
        members = tuple(generation for generation, _ in batch)
        with self._wake:
            self._in_batch = members
        started_s = self._clock()
        try:
            logits = backend.run([row for _, row in batch])
            ready = [generation for generation, row in batch if row.wants_logits]
            choices = choose_tokens(
                [g.sampler for g in ready], logits, [g.next_position for g in ready]
            )
        except Interrupted:
            # Everyone in the batch has left, or the engine closes.
            for generation in members:
                self._leave(backend, generation)
            return
        except EngineError as error:
            self._fail_step(backend, members, error)
            return
        finally:
            with self._wake:
                self._in_batch = ()
        self._failed_steps = 0
        self._note_rate(batch, self._clock() - started_s)
        for generation, row in batch:
            if not generation.is_decoding:
                generation.prefilled += len(row.tokens)
        now_s = self._clock()
        for generation, choice in zip(ready, choices, strict=True):
            self._accept(backend, generation, generation.accept(choice, backend, now_s))

    def _accept(self, backend: Backend, generation: Generation, chunk: Chunk) -> None:
        self._outbox.put(generation.stream, chunk)
        if generation.ended:
            self._leave(backend, generation)

    def _leave(self, backend: Backend, generation: Generation) -> None:
        """Free the slot and the reservation of a running request."""
        generation.ended = True
        backend.forget(generation.slot, 0)
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

    def _fail_step(
        self, backend: Backend, members: Iterable[Generation], error: EngineError
    ) -> None:
        """A failed step leaves the cache of its members unknown: they end, the others go on."""
        self._failed_steps += 1
        if self._failed_steps >= self._options.max_failed_steps:
            raise error
        for generation in members:
            self._fail(generation, error)
            self._leave(backend, generation)

    def _note_rate(self, batch: list[tuple[Generation, BatchRow]], took_s: float) -> None:
        tokens = sum(len(row.tokens) for _, row in batch)
        # Small steps measure decoding, not prefill.
        if tokens >= MIN_RATE_TOKENS and took_s > 0:
            rate, old = tokens / took_s, self._prefill_tokens_per_s
            self._prefill_tokens_per_s = rate if old is None else 0.8 * old + 0.2 * rate

    def _flush(self) -> None:
        lost = set(self._outbox.flush())
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
        for generation in left:
            self._fail(generation, error or _closed())
        self._outbox.flush()


def _decode_row(generation: Generation) -> BatchRow:
    return BatchRow(
        generation.slot, generation.next_position - 1, generation.tokens[-1:], wants_logits=True
    )


def _prefill_row(generation: Generation, limit: int) -> BatchRow:
    start = generation.prefilled
    tokens = generation.prompt[start : start + limit]
    return BatchRow(
        generation.slot, start, tokens, wants_logits=start + len(tokens) == len(generation.prompt)
    )


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
