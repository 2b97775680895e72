"""What nodes remember: devices, enrolment codes, replay window, leased quotas, usage ledger.

SQLite in WAL mode for one node, PostgreSQL for a fleet, through SQLAlchemy Core; both keep the same
promises and pass the same tests. Calls are synchronous and short; a node makes them on threads of
their own (:mod:`overspill_cloud.database`). No prompt, completion or address has a column here.
"""

from __future__ import annotations

from pathlib import Path

from overspill_cloud.store.backend import (
    FILE_NAME,
    Backend,
    StoreUnavailable,
    open_postgres,
    open_sqlite,
)
from overspill_cloud.store.devices import Devices
from overspill_cloud.store.ledger import Ledger
from overspill_cloud.store.quotas import QuotaLeases
from overspill_cloud.store.records import Device, Lease, UsageEntry
from overspill_cloud.store.replay import ReplayWindow
from overspill_cloud.store.schema import SCHEMA_VERSION, ready

__all__ = [
    "FILE_NAME",
    "SCHEMA_VERSION",
    "Backend",
    "Device",
    "Lease",
    "Store",
    "StoreUnavailable",
    "UsageEntry",
    "open_backend",
]


def open_backend(folder: Path, url: str | None = None) -> Backend:
    """The database at ``url``, or without one the file in ``folder``; its schema is not looked at.

    Raises ``ConfigurationError``.
    """
    return open_sqlite(folder) if url is None else open_postgres(url)


class Store(Devices, ReplayWindow, QuotaLeases, Ledger):
    """Everything that is remembered, in one database: PostgreSQL at ``url``, or a file in
    ``folder``, which is made private (0700, the file 0600).

    A file is brought to this version's schema. A fleet's database is upgraded by its operator
    (``overspill-cloud db upgrade``), while replicas of the version before go on.

    Raises ``ConfigurationError`` for a place that cannot be used or another schema; its methods
    raise ``StoreUnavailable`` while the database is gone or its disk is full.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        super().__init__(open_backend(folder, url))
        try:
            ready(self._backend)
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> Path:
        """The SQLite file. Raises ``ValueError`` for a server's database."""
        return self._backend.file

    @property
    def is_shared(self) -> bool:
        """Whether replicas on other machines use the same database."""
        return self._backend.is_postgres

    def now_unix(self) -> int | None:
        """The time by the clock that replicas share, their database's; None where a node is alone
        with its file. Raises ``StoreUnavailable``."""
        return self._backend.now_unix()

    def sync(self) -> None:
        """Return once what was committed survives a power cut."""
        self._backend.sync()

    def close(self) -> None:
        """Close every connection; SQLite's WAL is folded into its file."""
        self._backend.close()
