"""Quotas, leased: a replica sets tokens of an account aside, and spends them without asking again.

What an account has left is its limit, less what the ledger counted (``quota_usage``, written in the
ledger's own transaction, so that the two cannot differ), less the leases that are in force. A
replica that dies settles nothing: its leases end by themselves, and nothing is left of them.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import sqlalchemy as sa

from overspill_cloud.limits import QuotaTerms
from overspill_cloud.store.backend import Part
from overspill_cloud.store.records import Lease
from overspill_cloud.store.tables import quota_leases, quota_usage

_SHARE = 4
"""A lease beyond what is asked takes a quarter of what is left at most: the last tokens are not
held by a replica that does not need them."""


class QuotaLeases(Part):
    """Leases of the accounts' quotas."""

    def lease(
        self,
        account: bytes,
        limit: int,
        wanted: int,
        terms: QuotaTerms,
        now_unix: int,
        held: Lease | None = None,
    ) -> Lease | int:
        """Set at least ``wanted`` tokens aside, on top of the lease ``held`` where it is of this
        period; else the number of tokens that are left, when they are too few.

        The lease that is returned says what was added. Its id is that of ``held``, or a new one.
        """
        period = terms.period_of(now_unix)
        expires = now_unix + terms.lease_ttl_s
        if held is None or held.period_unix != period:
            held = Lease(secrets.token_bytes(16), account, period, 0, expires)
        with self._backend.write() as db:
            left = max(0, limit - self._lock_spent(db, account, period))
            left = max(0, left - _leased(db, account, period, now_unix))
            if left < wanted:
                return left
            added = max(wanted, min(terms.lease_tokens, left // _SHARE))
            self._extend(db, held, added, expires, now_unix)
        return Lease(held.lease_id, account, period, added, expires)

    def _lock_spent(self, db: sa.Connection, account: bytes, period: int) -> int:
        """What was spent; others who lease from or charge this account wait for our end."""
        row = {"account": account, "period_unix": period, "spent_tokens": 0}
        db.execute(self._backend.insert(quota_usage).values(row).on_conflict_do_nothing())
        wanted = sa.select(quota_usage.c.spent_tokens).where(
            quota_usage.c.account == account, quota_usage.c.period_unix == period
        )
        return int(db.execute(wanted.with_for_update()).scalar_one())

    def _extend(
        self, db: sa.Connection, held: Lease, added: int, expires: int, now_unix: int
    ) -> None:
        row = {
            "lease_id": held.lease_id,
            "account": held.account,
            "period_unix": held.period_unix,
            "tokens": added,
            "expires_unix": expires,
        }
        add = self._backend.insert(quota_leases).values(row)
        in_force = quota_leases.c.expires_unix > now_unix
        # One that ended was given back already: its tokens are not ours to add to.
        tokens = sa.case((in_force, quota_leases.c.tokens + added), else_=added)
        add = add.on_conflict_do_update(
            index_elements=["lease_id"], set_={"tokens": tokens, "expires_unix": expires}
        )
        db.execute(add)

    def renew_leases(self, lease_ids: Sequence[bytes], now_unix: int, ttl_s: int) -> set[bytes]:
        """Keep leases in force for ``ttl_s`` from now; returns those that still were."""
        mine = quota_leases.c.lease_id.in_(lease_ids)
        change = sa.update(quota_leases).where(mine, quota_leases.c.expires_unix > now_unix)
        change = change.values(expires_unix=now_unix + ttl_s)
        with self._backend.write() as db:
            kept = db.execute(change.returning(quota_leases.c.lease_id)).scalars().all()
        return {bytes(lease_id) for lease_id in kept}

    def give_back(self, lease_ids: Sequence[bytes]) -> None:
        """End leases at once; what was charged to them stays charged."""
        with self._backend.write() as db:
            db.execute(sa.delete(quota_leases).where(quota_leases.c.lease_id.in_(lease_ids)))

    def prune_leases(self, now_unix: int) -> int:
        """Remove leases that have ended; returns how many."""
        with self._backend.write() as db:
            ended = sa.delete(quota_leases).where(quota_leases.c.expires_unix <= now_unix)
            return db.execute(ended).rowcount

    def spent(self, account: bytes, period_unix: int) -> int:
        """Tokens that an account was charged in a period."""
        wanted = sa.select(quota_usage.c.spent_tokens).where(
            quota_usage.c.account == account, quota_usage.c.period_unix == period_unix
        )
        with self._backend.read() as db:
            return int(db.execute(wanted).scalar_one_or_none() or 0)

    def leased(self, account: bytes, period_unix: int, now_unix: int) -> int:
        """Tokens that leases in force set aside."""
        with self._backend.read() as db:
            return _leased(db, account, period_unix, now_unix)


def _leased(db: sa.Connection, account: bytes, period: int, now_unix: int) -> int:
    tokens = sa.func.coalesce(sa.func.sum(quota_leases.c.tokens), 0)
    wanted = sa.select(tokens).where(
        quota_leases.c.account == account,
        quota_leases.c.period_unix == period,
        quota_leases.c.expires_unix > now_unix,
    )
    return int(db.execute(wanted).scalar_one())
