"""SQLite's write-ahead log, on a file that several processes may open at the same moment."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Final

_PAUSE_S: Final = 0.001


def use_wal(db: sqlite3.Connection) -> None:
    """Put the connection's file into WAL mode; waits up to the connection's busy timeout.

    Two that turn a new file to WAL at once would wait for each other, so SQLite tells one of them
    SQLITE_BUSY without asking its busy handler (https://sqlite.org/c3ref/busy_handler.html).
    Raises ``sqlite3.Error``.
    """
    patience_s = db.execute("PRAGMA busy_timeout").fetchone()[0] / 1000
    _once_free(lambda: db.execute("PRAGMA journal_mode = WAL"), patience_s)


def begin_among_writers(db: sqlite3.Connection, patience_s: float) -> None:
    """Begin a transaction that writes, where another connection hardly ever lets the lock go.

    SQLite's own wait asks every 100 ms, so beside one that commits without a pause, on a slow disk,
    it meets no gap for many seconds; this asks every millisecond. Raises ``sqlite3.Error``.
    """
    usual = db.execute("PRAGMA busy_timeout").fetchone()[0]
    db.execute("PRAGMA busy_timeout = 0")
    try:
        _once_free(lambda: db.execute("BEGIN IMMEDIATE"), patience_s)
    finally:
        db.execute(f"PRAGMA busy_timeout = {usual}")


def _once_free(act: Callable[[], object], patience_s: float) -> None:
    """Do it as soon as the file is not locked. Raises ``sqlite3.Error``."""
    until = time.monotonic() + patience_s
    while True:
        try:
            act()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() >= until:
                raise
            time.sleep(_PAUSE_S)
        else:
            return


def is_busy(error: BaseException | None) -> bool:
    """Whether another connection has the file's lock."""
    code = getattr(error, "sqlite_errorcode", None)  # None too from Python code that raises it
    return code is not None and code & 0xFF == sqlite3.SQLITE_BUSY
