"""The store for an event loop: on threads of its own, many questions in one commit, never stuck.

A database that does not answer is a typed refusal (``StoreUnavailable``) within ``CALL_TIMEOUT_S``,
and at once while it is known not to answer: requests do not pile up before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final, TypeVar

from overspill_cloud import events
from overspill_cloud.ledger_writer import LedgerWriter, WriterLimits, WriterNews
from overspill_cloud.store import Device, Store, StoreUnavailable, UsageEntry
from overspill_cloud.store.backend import POOL
from overspill_cloud.store.replay import Seen

_T = TypeVar("_T")
CALL_TIMEOUT_S: Final = 8.0
"""Longer than the database's own limits: this is for one that is frozen."""
MAX_CALLS: Final = 1024
"""Calls that wait for a thread; what comes beyond is refused."""
MAX_GROUP: Final = 256
PRUNE_EVERY_S: Final = 20
_WRITER_THREADS: Final = 1


class SteadyClock:
    """A clock that no step of the wall clock puts forward: what was forgotten because the time was
    wrong for a moment could be replayed when it is right again. ``timer`` gives seconds."""

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        self._timer = timer
        self._first: tuple[int, float] | None = None

    def at_most(self, unix_s: int) -> int:
        """``unix_s``, or less: what has passed since the first reading, after that reading."""
        if self._first is None:
            self._first = (unix_s, self._timer())
        began_unix, began_s = self._first
        return min(unix_s, began_unix + int(self._timer() - began_s) + 1)


class Database:
    """A store's calls without waiting threads. ``told`` hears of failures and recoveries."""

    def __init__(
        self,
        store: Store,
        told: Callable[[events.LogEvent], None] = lambda event: None,
        writer: WriterLimits | None = None,
    ) -> None:
        self.store = store
        threads = POOL - _WRITER_THREADS if store.is_shared else 1
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="overspill-store")
        self._ledger = LedgerWriter(store, _news(told), writer)
        self._calls = 0
        self._stuck = 0
        self._group: list[tuple[Seen, asyncio.Future[bool]]] = []
        self._asking: asyncio.Task[None] | None = None
        self._pruned_unix = 0
        self._steady = SteadyClock()
        self._at_close: list[Callable[[], None]] = []

    async def call(self, work: Callable[[], _T]) -> _T:
        """Run ``work`` on a thread of the store's. Raises ``StoreUnavailable``."""
        if self._stuck or self._calls >= MAX_CALLS:
            raise StoreUnavailable
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        self._calls += 1
        running.add_done_callback(self._called)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await asyncio.shield(running)
        except TimeoutError:
            self._give_up(running)
            raise StoreUnavailable from None

    def _called(self, running: asyncio.Future[_T]) -> None:
        self._calls -= 1
        if not running.cancelled():
            running.exception()  # who asked may have left

    def _give_up(self, running: asyncio.Future[_T]) -> None:
        """Nobody asks again before this call has come back."""
        if not running.done():
            self._stuck += 1
            running.add_done_callback(lambda _: self._unstick())

    def _unstick(self) -> None:
        self._stuck -= 1

    # What each request asks --------------------------------------------------------------------

    async def device(self, thumbprint: bytes) -> Device | None:
        """As the store's. Of a file it is read here: that is one page in memory, which no writer
        keeps a reader from, and takes a tenth of the way to another thread and back. Raises
        ``StoreUnavailable``."""
        if self.store.is_shared:
            return await self.call(lambda: self.store.device(thumbprint))
        if self._stuck:
            raise StoreUnavailable
        return self.store.device(thumbprint)

    async def is_fresh(self, seen: Seen, window_s: int) -> bool:
        """Whether this request id was never seen, and remember it. Those who ask together share a
        commit. Raises ``StoreUnavailable``: whether it was noted is then unknown."""
        verdict: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._group.append((seen, verdict))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask(window_s))
        return await verdict

    async def _ask(self, window_s: int) -> None:
        """Commit what has gathered: who comes while one group is noted is of the next."""
        while self._group:
            group, self._group = self._group[:MAX_GROUP], self._group[MAX_GROUP:]
            await self._record(group, window_s)

    async def _record(self, group: list[tuple[Seen, asyncio.Future[bool]]], window_s: int) -> None:
        seen = [one for one, _ in group]
        try:
            fresh = await self.call(lambda: self._note(seen, window_s))
        except Exception as error:
            for _, verdict in group:
                if not verdict.done():
                    verdict.set_exception(error)
            return
        for (_, verdict), is_fresh in zip(group, fresh, strict=True):
            if not verdict.done():
                verdict.set_result(is_fresh)

    def _note(self, seen: list[Seen], window_s: int) -> list[bool]:
        shared_unix = self.store.now_unix()
        if shared_unix is not None:
            # Replicas' own clocks may differ: one that is ahead would forget for all of them.
            seen = [replace(one, unix_s=shared_unix) for one in seen]
        now = self._steady.at_most(max(one.unix_s for one in seen))
        if not 0 <= now - self._pruned_unix < PRUNE_EVERY_S:
            self._pruned_unix = now
            self.store.prune_replay(now - window_s)
            self.store.prune_leases(now)
        return self.store.record_requests(seen, window_s)

    # The ledger -------------------------------------------------------------------------------

    def record(self, entry: UsageEntry) -> None:
        """Put a line into the ledger; nobody waits for it, and :meth:`close` does not lose it."""
        self._ledger.put(entry)

    @property
    def unwritten(self) -> int:
        """Ledger lines that are not on the disk yet."""
        return self._ledger.backlog

    def check_ledger(self) -> None:
        """Raises ``StoreUnavailable`` when so much waits to be written that no more may begin."""
        if self._ledger.is_full:
            raise StoreUnavailable

    async def written(self, timeout_s: float) -> bool:
        """Wait until the ledger is on the disk; False when that took too long."""
        return await asyncio.to_thread(self._ledger.wait, timeout_s)

    # The end ----------------------------------------------------------------------------------

    def at_close(self, work: Callable[[], None]) -> None:
        """Run ``work`` when the ledger is written and the store still open."""
        self._at_close.append(work)

    def close(self) -> None:
        """Finish what is queued, then close the store."""
        self._threads.shutdown(wait=not self._stuck)
        self._ledger.close()
        for work in self._at_close:
            work()
        self.store.close()


def _news(told: Callable[[events.LogEvent], None]) -> WriterNews:
    return WriterNews(
        unavailable=lambda error: told(events.StoreFailed(type(error.__cause__).__name__)),
        recovered=lambda: told(events.StoreRecovered()),
        refused=lambda error: told(events.InternalError(type(error).__name__, "ledger")),
        lost=lambda lines: told(events.UsageLost(lines)),
    )
