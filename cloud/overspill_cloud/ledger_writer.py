"""The ledger's writer: a thread that commits what has gathered, and reaches the disk, for all.

Nobody waits for it. While the database is gone or its disk is full the lines stay in memory and are
tried again; a node whose backlog is full admits nobody (:attr:`LedgerWriter.is_full`), so that
memory is bounded and nothing is served that will not be counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from overspill_cloud.store import Store, StoreUnavailable, UsageEntry


@dataclass(frozen=True, slots=True)
class WriterLimits:
    """``max_backlog``: lines in memory from which on nobody is admitted; those who run then may
    still add theirs."""

    max_batch: int = 512
    gather_s: float = 0.05
    """So long a line may wait for others: a commit and a sync for each would be as dear as the
    request itself, and take the interpreter from the next one."""
    max_backlog: int = 8192
    first_retry_s: float = 0.05
    max_retry_s: float = 2.0
    close_timeout_s: float = 10.0
    """Lines that cannot be written by then are lost, and counted."""


@dataclass(frozen=True, slots=True)
class WriterNews:
    """Who is told, on the writer's thread: of the first failure and of the recovery, of a line that
    the database does not take, and how many were lost at the end; of one that comes after it, on
    the thread of who puts it."""

    unavailable: Callable[[StoreUnavailable], None] = lambda error: None
    recovered: Callable[[], None] = lambda: None
    refused: Callable[[Exception], None] = lambda error: None
    lost: Callable[[int], None] = lambda lines: None


class LedgerWriter:
    """Group commit of usage entries."""

    def __init__(
        self,
        store: Store,
        news: WriterNews | None = None,
        limits: WriterLimits | None = None,
    ) -> None:
        self._store = store
        self._news = news or WriterNews()
        self._limits = limits or WriterLimits()
        self._waiting: deque[UsageEntry] = deque()
        self._writing = 0
        self._changed = threading.Condition()
        self._closing_at: float | None = None
        self._awaited = 0
        """Who waits for the disk: for them nothing is gathered."""
        self._failing = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="overspill-ledger", daemon=True)
        self._thread.start()

    def put(self, entry: UsageEntry) -> None:
        """Take a line; never waits. One that comes when the writer has ended is lost."""
        with self._changed:
            is_lost = self._ended
            if not is_lost:
                self._waiting.append(entry)
            # While lines gather the writer looks again by itself: a thread that is woken for each
            # takes the interpreter from the request that this line is about.
            if len(self._waiting) in (1, self._limits.max_batch):
                self._changed.notify_all()
        if is_lost:
            self._news.lost(1)

    @property
    def backlog(self) -> int:
        """Lines that are not on the disk yet."""
        return len(self._waiting) + self._writing

    @property
    def is_full(self) -> bool:
        """Whether so many lines wait that no request may begin."""
        return self.backlog >= self._limits.max_backlog

    def wait(self, timeout_s: float) -> bool:
        """Wait until everything taken so far is on the disk; False when that took too long."""
        with self._changed:
            self._awaited += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self.backlog, timeout_s)
            finally:
                self._awaited -= 1

    def close(self) -> None:
        """Write what is left, for ``close_timeout_s`` at most, and end."""
        with self._changed:
            self._closing_at = time.monotonic() + self._limits.close_timeout_s
            self._changed.notify_all()
        self._thread.join()

    # On the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while batch := self._next_batch():
            retry_s = self._limits.first_retry_s
            while not self._written(batch):
                if not self._may_retry(retry_s):
                    self._news.lost(len(batch) + self._end())
                    return
                retry_s = min(2 * retry_s, self._limits.max_retry_s)
            with self._changed:
                self._writing = 0
                self._changed.notify_all()

    def _next_batch(self) -> list[UsageEntry]:
        """What has gathered; nothing when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing_at is not None)
            self._changed.wait_for(self._has_gathered, self._limits.gather_s)
            batch = [
                self._waiting.popleft()
                for _ in range(min(len(self._waiting), self._limits.max_batch))
            ]
            self._writing = len(batch)
            self._ended = not batch
            return batch

    def _end(self) -> int:
        """Take no more lines; how many are left."""
        with self._changed:
            self._ended = True
            return len(self._waiting)

    def _has_gathered(self) -> bool:
        full = len(self._waiting) >= self._limits.max_batch
        return full or self._awaited > 0 or self._closing_at is not None

    def _written(self, batch: Sequence[UsageEntry]) -> bool:
        try:
            self._append(batch)
            self._store.sync()
        except StoreUnavailable as error:
            if not self._failing:
                self._failing = True
                self._news.unavailable(error)
            return False
        if self._failing:
            self._failing = False
            self._news.recovered()
        return True

    def _append(self, batch: Sequence[UsageEntry]) -> None:
        try:
            self._store.append_usage(*batch)
        except StoreUnavailable:
            raise
        except Exception as error:  # a thread that ends would lose every line that comes
            if len(batch) == 1:
                self._news.refused(error)
                return
            # One line that the database does not take must not hold the others back.
            for entry in batch:
                self._append((entry,))

    def _may_retry(self, pause_s: float) -> bool:
        """Pause; False when it is time to give up."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing_at is not None, pause_s)
            if self._closing_at is None:
                return True
            left_s = self._closing_at - time.monotonic()
        if left_s <= 0:
            return False
        time.sleep(min(pause_s, left_s))
        return True
