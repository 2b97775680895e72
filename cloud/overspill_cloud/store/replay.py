"""The replay window: each request id of a device once, at whichever replica."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.dml import ReturningInsert

from overspill_cloud.store.backend import Backend, DriverStatement, Part
from overspill_cloud.store.tables import replay

_KEY = ("thumbprint", "request_id")


@dataclass(frozen=True, slots=True, order=True)
class Seen:
    """A request id that was just seen, by a device's thumbprint."""

    thumbprint: bytes
    request_id: bytes
    unix_s: int


class ReplayWindow(Part):
    """One statement inserts or refuses: there is no moment between a look and a note."""

    def record_request(
        self, thumbprint: bytes, request_id: bytes, now_unix: int, window_s: int
    ) -> bool:
        """Remember a request id for ``window_s`` seconds; False when it was seen before."""
        return self.record_requests([Seen(thumbprint, request_id, now_unix)], window_s)[0]

    def record_requests(self, seen: Sequence[Seen], window_s: int) -> list[bool]:
        """The same for many at once, in one commit. Of equals the first is the fresh one."""
        first: dict[tuple[bytes, bytes], int] = {}
        for index, one in enumerate(seen):
            first.setdefault((one.thumbprint, one.request_id), index)
        # In one order at every replica: two that wait for each other's rows would be a deadlock.
        rows = [
            {"thumbprint": key[0], "request_id": key[1], "seen_unix": seen[index].unix_s}
            for key, index in sorted(first.items())
        ]
        if not rows:
            return []
        if self._backend.is_postgres:
            with self._backend.write() as db:
                # One alone goes by the short way.
                add = _adding(self._backend, window_s)
                added = db.execute(add, rows if len(rows) > 1 else rows[0]).all()
        else:
            added = self._add_to_file(rows, window_s)
        fresh = {first[bytes(row[0]), bytes(row[1])] for row in added}
        return [index in fresh for index in range(len(seen))]

    def _add_to_file(self, rows: Sequence[Mapping[str, object]], window_s: int) -> Sequence[Any]:
        add = _adding_to_file(self._backend, window_s)
        with self._backend.driver() as db:
            db.execute("BEGIN IMMEDIATE")
            added = [one for row in rows for one in add.run(db, row)]
            db.execute("COMMIT")
        return added

    def prune_replay(self, before_unix: int) -> int:
        """Forget what was seen before; returns how many."""
        with self._backend.write() as db:
            old = sa.delete(replay).where(replay.c.seen_unix < before_unix)
            return db.execute(old).rowcount


@lru_cache(maxsize=4)  # built for each request, it took longer than it ran
def _adding(backend: Backend, window_s: int) -> ReturningInsert[Any]:
    add = backend.insert(replay)
    noted = add.on_conflict_do_update(
        index_elements=_KEY,
        set_={"seen_unix": add.excluded.seen_unix},
        # One that fell out of the window counts as forgotten, whether or not it is pruned.
        where=replay.c.seen_unix < add.excluded.seen_unix - sa.literal_column(str(window_s)),
    )
    return noted.returning(replay.c.thumbprint, replay.c.request_id)


@lru_cache(maxsize=4)
def _adding_to_file(backend: Backend, window_s: int) -> DriverStatement:
    return DriverStatement(_adding(backend, window_s))
