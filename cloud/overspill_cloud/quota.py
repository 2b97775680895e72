"""A replica's side of the quotas: it holds leases, and spends from them without the database.

Each account has one lease here at most. A request holds its estimate; when it ends, what it did not
take goes back into the lease, and the ledger's writer charges what it took. Leases with requests
under way are renewed, idle ones are given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from overspill.errors import BusyError
from overspill_cloud.database import Database
from overspill_cloud.limits import QuotaTerms
from overspill_cloud.store import Device, Lease, StoreUnavailable


@dataclass(slots=True)
class _Purse:
    """A lease as it is spent."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    lease: Lease | None = None
    free: int = 0
    holds: int = 0
    used_unix: float = 0.0


class Hold:
    """Tokens of a device's quota that one request may take."""

    def __init__(self, account: bytes, period_unix: int) -> None:
        self.account = account
        self.period_unix = period_unix
        self.lease: bytes | None = None
        self._settle: Callable[[int], None] = lambda used: None

    def spend_from(self, lease: Lease, settle: Callable[[int], None]) -> None:
        """Charge a lease; ``settle`` hears once how much was used of it."""
        self.lease, self.period_unix, self._settle = lease.lease_id, lease.period_unix, settle

    def settle(self, used: int = 0) -> None:
        """Give back what was not used; only the first time counts."""
        settle, self._settle = self._settle, lambda used: None
        settle(used)


class Quotas:
    """Holds tokens for requests. ``limit`` is every device's own quota a period, unless it has
    another one; None is none. ``clock`` gives Unix seconds."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        limit: int | None,
        terms: QuotaTerms,
    ) -> None:
        self._database = database
        self._clock = clock
        self._limit = limit
        self._terms = terms
        self._purses: dict[bytes, _Purse] = {}
        self._keeping: asyncio.Task[None] | None = None
        database.at_close(self._give_all_back)

    async def hold(self, device: Device, tokens: int) -> Hold:
        """Hold tokens of the device's quota, from the lease at hand where it is enough.

        Raises ``BusyError`` (QUOTA) with the time until the next period, or ``StoreUnavailable``.
        """
        wanted = max(1, tokens)
        now = self._clock()
        hold = Hold(device.account, self._terms.period_of(now))
        limit = self._limit if device.quota_tokens is None else device.quota_tokens
        if limit is None:
            return hold
        purse = self._purses.setdefault(device.account, _Purse())
        purse.used_unix = now
        lease = self._enough(purse, wanted)
        if lease is None:
            async with purse.lock:
                # Others may take from it meanwhile, without waiting for the lock.
                while (lease := self._enough(purse, wanted)) is None:
                    await self._fill(purse, device.account, limit, wanted)
        self._take(purse, lease, hold, wanted)
        return hold

    def _enough(self, purse: _Purse, wanted: int) -> Lease | None:
        """The lease at hand, if so much can be taken from it now."""
        lease, now = purse.lease, self._clock()
        if lease is None or lease.period_unix != self._terms.period_of(now):
            return None
        is_fresh = lease.expires_unix > now + self._margin_s
        return lease if is_fresh and purse.free >= wanted else None

    @property
    def _margin_s(self) -> float:
        """A lease is not spent from in its last third: replicas' clocks differ."""
        return self._terms.lease_ttl_s / 3

    async def _fill(self, purse: _Purse, account: bytes, limit: int, wanted: int) -> None:
        now, held = self._clock(), purse.lease
        in_force = held is not None and held.expires_unix > now
        if not in_force or (held and held.period_unix != self._terms.period_of(now)):
            purse.lease, purse.free, held = None, 0, None
        missing = max(1, wanted - purse.free)
        store, terms = self._database.store, self._terms
        found = await self._database.call(
            lambda: store.lease(account, limit, missing, terms, int(now), held)
        )
        if isinstance(found, int):
            raise self._spent(limit, found + purse.free, wanted, now)
        purse.free += found.tokens
        purse.lease = found
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.ensure_future(self._keep())

    def _take(self, purse: _Purse, lease: Lease, hold: Hold, wanted: int) -> None:
        purse.free -= wanted
        purse.holds += 1

        def settle(used: int) -> None:
            purse.holds -= 1
            if purse.lease is not None and purse.lease.lease_id == lease.lease_id:
                # An answer may take more than its estimate: the lease has that much less.
                purse.free = max(0, purse.free + wanted - used)

        hold.spend_from(lease, settle)

    def _spent(self, limit: int, left: int, wanted: int, now: float) -> BusyError:
        until = self._terms.period_of(now) + self._terms.period_s - now
        return BusyError(
            f"This device's quota of {limit} tokens has {left} left; the request may take "
            f"{wanted}. (QUOTA)",
            mend="Ask for less, or wait for the next period.",
            retry_after_s=float(until),
            reason="QUOTA",
        )

    # Keeping leases ---------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Renew what is used and give back what is not, until nothing is held any more."""
        while self._purses:
            await asyncio.sleep(self._terms.lease_ttl_s / 3)
            try:
                await self.renew()
            except StoreUnavailable:
                continue  # leases end by themselves, and requests are told

    async def renew(self) -> None:
        """One round of it. Raises ``StoreUnavailable``."""
        now = self._clock()
        idle = [
            account
            for account, purse in self._purses.items()
            if not purse.holds
            and not purse.lock.locked()
            and purse.used_unix < now - self._margin_s
        ]
        ended = [self._purses.pop(account).lease for account in idle]
        over = [lease.lease_id for lease in ended if lease is not None]
        mine = {p.lease.lease_id: p for p in self._purses.values() if p.lease is not None}
        store, ttl_s = self._database.store, self._terms.lease_ttl_s
        if over:
            await self._database.call(lambda: store.give_back(over))
        if mine:
            names = list(mine)
            kept = await self._database.call(lambda: store.renew_leases(names, int(now), ttl_s))
            for lease_id, purse in mine.items():
                self._renewed(purse, lease_id, lease_id in kept, int(now) + ttl_s)

    def _renewed(self, purse: _Purse, lease_id: bytes, is_kept: bool, until: int) -> None:
        lease = purse.lease
        if lease is None or lease.lease_id != lease_id:
            return  # it was replaced meanwhile
        if is_kept:
            purse.lease = Lease(lease_id, lease.account, lease.period_unix, lease.tokens, until)
        else:
            purse.lease, purse.free = None, 0

    def _give_all_back(self) -> None:
        """At the end, on a node that stops in good order."""
        if self._keeping is not None and not self._keeping.done():
            self._keeping.get_loop().call_soon_threadsafe(self._keeping.cancel)
        held = [p.lease.lease_id for p in self._purses.values() if p.lease is not None]
        self._purses.clear()
        if held:
            try:
                self._database.store.give_back(held)
            except StoreUnavailable:
                return  # they end by themselves
