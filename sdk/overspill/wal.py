"""SQLite's write-ahead log, on a file that several processes may open at the same moment."""

from __future__ import annotations

import sqlite3
import time
from typing import Final

_PAUSE_S: Final = 0.005


def use_wal(db: sqlite3.Connection) -> None:
    """Put the connection's file into WAL mode; waits up to the connection's busy timeout.

    Two that turn a new file to WAL at once would wait for each other, so SQLite tells one of them
    SQLITE_BUSY without asking its busy handler (https://sqlite.org/c3ref/busy_handler.html).
    Raises ``sqlite3.Error``.
    """
    patience_s = db.execute("PRAGMA busy_timeout").fetchone()[0] / 1000
    until = time.monotonic() + patience_s
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(_PAUSE_S)
        else:
            return
