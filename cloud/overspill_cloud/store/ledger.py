"""The usage ledger: append-only, one line an attempt, charged to a quota in the same commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from overspill_cloud.store.backend import Part
from overspill_cloud.store.records import UsageEntry
from overspill_cloud.store.tables import ledger, quota_leases, quota_usage


class Ledger(Part):
    """What was used. Triggers refuse every change of a line."""

    def append_usage(self, *entries: UsageEntry) -> None:
        """Add lines, all in one commit; an attempt that is there already changes nothing."""
        entries_by_key = {(e.request_id, e.attempt): e for e in reversed(entries)}
        if not entries_by_key:
            return
        rows = [_row(entry) for _, entry in sorted(entries_by_key.items())]
        add = self._backend.insert(ledger).on_conflict_do_nothing()
        with self._backend.write() as db:
            added = db.execute(add.returning(ledger.c.request_id, ledger.c.attempt), rows).all()
            new = [entries_by_key[bytes(row[0]), int(row[1])] for row in added]
            self._charge(db, [entry for entry in new if entry.period_unix])

    def _charge(self, db: sa.Connection, entries: Sequence[UsageEntry]) -> None:
        """Move tokens from their leases to what was spent. Rows are locked in one order."""
        spent: Counter[tuple[bytes, int]] = Counter()
        leases: Counter[bytes] = Counter()
        for entry in entries:
            spent[entry.account or entry.thumbprint, entry.period_unix] += entry.tokens
            if entry.lease is not None:
                leases[entry.lease] += entry.tokens
        if spent:
            add = self._backend.insert(quota_usage)
            total = quota_usage.c.spent_tokens + add.excluded.spent_tokens
            add = add.on_conflict_do_update(
                index_elements=["account", "period_unix"], set_={"spent_tokens": total}
            )
            rows = [
                {"account": account, "period_unix": period, "spent_tokens": tokens}
                for (account, period), tokens in sorted(spent.items())
            ]
            db.execute(add, rows)
        if leases:
            db.execute(_LESS, [{"id": i, "used": n} for i, n in sorted(leases.items())])

    def usage(self) -> list[dict[str, Any]]:
        """The whole ledger, oldest first."""
        order = (ledger.c.minute_unix, ledger.c.request_id, ledger.c.attempt)
        with self._backend.read() as db:
            rows = db.execute(sa.select(ledger).order_by(*order)).all()
        return [dict(row._mapping) for row in rows]


_USED: sa.BindParameter[int] = sa.bindparam("used", type_=sa.BigInteger)
_LESS = (
    sa.update(quota_leases)
    .where(quota_leases.c.lease_id == sa.bindparam("id"))
    .values(
        tokens=sa.case(
            (quota_leases.c.tokens > _USED, quota_leases.c.tokens - _USED),
            else_=0,  # an answer may take more than its estimate: it is charged, and no lease owes
        )
    )
)


def _row(entry: UsageEntry) -> dict[str, Any]:
    return {
        "request_id": entry.request_id,
        "attempt": entry.attempt,
        "thumbprint": entry.thumbprint,
        "minute_unix": entry.unix_s // 60 * 60,
        "model": entry.model,
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "outcome": entry.outcome,
        "period_unix": entry.period_unix,
    }
