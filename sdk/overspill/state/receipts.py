"""The receipts that this client was given, so that they can be verified later and offline."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path

from overspill.errors import ConfigurationError, UsageError
from overspill.types.reply import ReceiptRecord

_SCHEMA = """
CREATE TABLE IF NOT EXISTS receipts (
    id TEXT PRIMARY KEY, request_id TEXT NOT NULL, unix_s INTEGER NOT NULL, node TEXT NOT NULL,
    assurance TEXT NOT NULL, data BLOB NOT NULL, node_key_config BLOB NOT NULL,
    receipt_public_key BLOB NOT NULL, transcript_th BLOB NOT NULL, salt BLOB NOT NULL
) STRICT
"""
_COLUMNS = tuple(f.name for f in fields(ReceiptRecord))
_MARKS = ", ".join("?" * len(_COLUMNS))


class ReceiptStore:
    """Receipts in one SQLite file, readable by its owner only. No prompt and no answer in it.

    Every method raises ``ConfigurationError`` when the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, record: ReceiptRecord) -> None:
        """Keep a receipt; the same one twice is kept once."""
        values = tuple(getattr(record, name) for name in _COLUMNS)
        with self._connect() as db:
            db.execute(f"INSERT OR IGNORE INTO receipts VALUES ({_MARKS})", values)  # noqa: S608

    def list(self, limit: int = 100) -> list[ReceiptRecord]:
        """The newest receipts first."""
        with self._connect() as db:
            rows = db.execute(
                "SELECT * FROM receipts ORDER BY unix_s DESC, rowid DESC LIMIT ?", (limit,)
            ).fetchall()
        return [ReceiptRecord(*row) for row in rows]

    def get(self, receipt_id: str) -> ReceiptRecord:
        """One receipt by its id or the unambiguous beginning of it; raises ``UsageError``."""
        pattern = "".join(c for c in receipt_id if c.isalnum()) + "%"
        with self._connect() as db:
            rows = db.execute(
                "SELECT * FROM receipts WHERE id LIKE ? LIMIT 2", (pattern,)
            ).fetchall()
        if len(rows) != 1:
            what = "More than one receipt begins" if rows else "No receipt begins"
            raise UsageError(f"{what} with '{receipt_id}'.", mend="See: overspill receipts list")
        return ReceiptRecord(*rows[0])

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path.touch(mode=0o600, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=2)) as db, db:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute(_SCHEMA)
                yield db
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"The receipts in {self._path} cannot be used: {error}.",
                mend="Make room, or move the file away.",
            ) from error
