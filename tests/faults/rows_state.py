"""R9 and R10: what replicas remember, over the database of a fleet where one is installed."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import postgres_server
from faults import lease_crash
from faults.scale import Measured, Scale

from overspill_cloud.database import Database
from overspill_cloud.store import Store, StoreUnavailable, open_backend
from overspill_cloud.store.check import check
from overspill_cloud.store.replay import Seen
from overspill_cloud.store.schema import upgrade

WINDOW_S = 180
AT_ONCE = 512
RESTARTS = 20
_RECENT = 20_000


@contextmanager
def databases(folder: Path) -> Iterator[list[tuple[str, str | None]]]:
    """(name, URL or None for a file) of each database that can be tried here."""
    if postgres_server.programs() is None:
        print("PostgreSQL is not installed: over SQLite alone", flush=True)
        yield [("sqlite", None)]
        return
    with postgres_server.serving() as server:
        url = server.new_database()
        with closing(open_backend(folder, url)) as backend:
            upgrade(backend)
        yield [("sqlite", None), ("postgresql", url)]


class Messages:
    """Draws request ids: new ones, and ones that were sent within the window, in any order."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._recent: list[bytes] = []
        self._next = 0

    def take(self, count: int) -> list[bytes]:
        """The next messages: three of ten come again, at either replica, near or far."""
        drawn = []
        for _ in range(count):
            if self._recent and self._draw.random() < 0.3:
                drawn.append(self._draw.choice(self._recent))
                continue
            request_id = self._next.to_bytes(16, "big")
            self._next += 1
            if len(self._recent) < _RECENT:
                self._recent.append(request_id)
            else:
                self._recent[self._draw.randrange(_RECENT)] = request_id
            drawn.append(request_id)
        self._draw.shuffle(drawn)
        return drawn


async def r9(scale: Scale, folder: Path) -> Measured:
    """A million messages to two replicas, some twice, out of order, with restarts between."""
    count = scale.of(1_000_000, short=8_000)
    seed = scale.seed("R9")
    twice = refused = 0
    with databases(folder) as found:
        for name, url in found:
            here = await _replay(count // len(found), seed, folder / name, url)
            twice, refused = twice + here[0], refused + here[1]
    return {"accepted_twice": twice, "refused": refused}


async def _replay(count: int, seed: int, folder: Path, url: str | None) -> tuple[int, int]:
    messages, draw = Messages(seed), random.Random(seed)
    replicas = [Database(Store(folder, url)) for _ in range(2)]
    accepted: set[bytes] = set()
    unknown: set[bytes] = set()
    twice = refused = sent = 0
    restart_at = every = max(1, count // RESTARTS)
    try:
        while sent < count:
            ids = messages.take(min(AT_ONCE, count - sent))
            # Within one window: what fell out of it no signature passes for.
            asked = [Seen(b"d" * 32, one, 1000 + WINDOW_S * sent // count) for one in ids]
            fresh = await asyncio.gather(
                *(draw.choice(replicas).is_fresh(one, WINDOW_S) for one in asked),
                return_exceptions=True,
            )
            sent += len(ids)
            # A database that is too slow is a typed refusal; whether it noted the id is not known.
            unknown.update(one for one, told in zip(ids, fresh, strict=True) if _is_refusal(told))
            new = [one for one, told in zip(ids, fresh, strict=True) if told is True]
            sure = set(new) - unknown
            twice += sum(count - 1 for one, count in Counter(new).items() if one in sure)
            twice += len(sure & accepted)
            refused += len(set(ids) - accepted - set(new) - unknown)
            accepted.update(new)
            if sent >= restart_at:
                restart_at += every
                which = draw.randrange(2)
                await asyncio.to_thread(replicas[which].close)
                replicas[which] = Database(Store(folder, url))
    finally:
        for replica in replicas:
            await asyncio.to_thread(replica.close)
    if unknown:
        print(f"R9: {len(unknown)} of {sent} were refused by a slow database", flush=True)
    return twice, refused


def _is_refusal(told: bool | BaseException) -> bool:
    if isinstance(told, BaseException) and not isinstance(told, StoreUnavailable):
        raise told
    return isinstance(told, StoreUnavailable)


async def r10(scale: Scale, folder: Path) -> Measured:
    """Replicas are killed between reserve and settle; then their leases end."""
    times = scale.of(1000, short=20)
    seed = scale.seed("R10")
    held = drift = 0
    with databases(folder) as found:
        for name, url in found:
            here = await asyncio.to_thread(_crash, folder / name, url, times // len(found), seed)
            held, drift = held + here[0], drift + here[1]
    return {"held": held, "drift": drift}


def _crash(folder: Path, url: str | None, times: int, seed: int) -> tuple[int, int]:
    Store(folder, url).close()
    words = [str(folder), str(times), str(seed), *([url] if url else [])]
    subprocess.run(
        [sys.executable, lease_crash.__file__, *words],
        check=True,
        stdout=subprocess.DEVNULL,
        env=dict(os.environ),
    )
    over = lease_crash.NOW + lease_crash.TERMS.lease_ttl_s
    period = lease_crash.TERMS.period_of(lease_crash.NOW)
    with closing(Store(folder, url)) as store, closing(open_backend(folder, url)) as backend:
        left = lease_crash.LIMIT - store.spent(lease_crash.ACCOUNT, period)
        # Every token that was not spent can be had again.
        again = store.lease(lease_crash.ACCOUNT, lease_crash.LIMIT, left, lease_crash.TERMS, over)
        held = left - again if isinstance(again, int) else 0
        drift = sum(abs(d.ledger_tokens - d.quota_tokens) for d in check(backend, over).drift)
    return held, drift
