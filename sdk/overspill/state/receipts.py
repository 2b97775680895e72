"""The receipts that this client was given, so that they can be verified later and offline."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from pathlib import Path

from overspill.errors import ConfigurationError, UsageError
from overspill.types.reply import ReceiptRecord
from overspill.wal import use_wal

_SCHEMA = """
CREATE TABLE IF NOT EXISTS receipts (
    id TEXT PRIMARY KEY, request_id TEXT NOT NULL, unix_s INTEGER NOT NULL, node TEXT NOT NULL,
    assurance TEXT NOT NULL, data BLOB NOT NULL, node_key_config BLOB NOT NULL,
    receipt_public_key BLOB NOT NULL, transcript_th BLOB NOT NULL, salt BLOB NOT NULL
) STRICT
"""
_ADDED = {
    "evidence": "BLOB NOT NULL DEFAULT x''",
    "verdict": "TEXT NOT NULL DEFAULT ''",
    "device_public_der": "BLOB NOT NULL DEFAULT x''",
    "device_signature": "BLOB NOT NULL DEFAULT x''",
}
"""Columns that came later; ``evidence`` has the digest of what the table of that name holds."""
_EVIDENCE = (
    "CREATE TABLE IF NOT EXISTS evidence (sha256 BLOB PRIMARY KEY, data BLOB NOT NULL) STRICT"
)
_COLUMNS = tuple(f.name for f in fields(ReceiptRecord))
_MARKS = ", ".join("?" * len(_COLUMNS))
_FIELDS = ", ".join(
    "COALESCE(e.data, x'')" if name == "evidence" else f"r.{name}" for name in _COLUMNS
)
_SELECT = f"SELECT {_FIELDS} FROM receipts r LEFT JOIN evidence e ON e.sha256 = r.evidence"  # noqa: S608


class ReceiptStore:
    """Receipts in one SQLite file, readable by its owner only. No prompt and no answer in it.

    Every method raises ``ConfigurationError`` when the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, record: ReceiptRecord) -> None:
        """Keep a receipt; the same one twice is kept once."""
        digest = hashlib.sha256(record.evidence).digest() if record.evidence else b""
        values = tuple(getattr(replace(record, evidence=digest), name) for name in _COLUMNS)
        into = f"INSERT OR IGNORE INTO receipts ({', '.join(_COLUMNS)}) VALUES ({_MARKS})"  # noqa: S608
        with self._connect() as db:
            if digest:
                pair = (digest, record.evidence)
                db.execute("INSERT OR IGNORE INTO evidence VALUES (?, ?)", pair)
            db.execute(into, values)

    def list(self, limit: int = 100) -> list[ReceiptRecord]:
        """The newest receipts first."""
        with self._connect() as db:
            rows = db.execute(
                f"{_SELECT} ORDER BY r.unix_s DESC, r.rowid DESC LIMIT ?", (limit,)
            ).fetchall()
        return [ReceiptRecord(*row) for row in rows]

    def get(self, receipt_id: str) -> ReceiptRecord:
        """One receipt by its id or the unambiguous beginning of it; raises ``UsageError``."""
        pattern = "".join(c for c in receipt_id if c.isalnum()) + "%"
        with self._connect() as db:
            rows = db.execute(f"{_SELECT} WHERE r.id LIKE ? LIMIT 2", (pattern,)).fetchall()
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
                use_wal(db)
                db.execute(_SCHEMA)
                db.execute(_EVIDENCE)
                _add_columns(db)
                yield db
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"The receipts in {self._path} cannot be used: {error}.",
                mend="Make room, or move the file away.",
            ) from error


def _add_columns(db: sqlite3.Connection) -> None:
    """Bring a file of an earlier version up to this one; its receipts stay as they are."""
    if not _missing(db):
        return
    db.execute("BEGIN IMMEDIATE")  # and look again: another process may be at it
    for name in _missing(db):
        db.execute(f"ALTER TABLE receipts ADD COLUMN {name} {_ADDED[name]}")


def _missing(db: sqlite3.Connection) -> list[str]:
    there = {row[1] for row in db.execute("PRAGMA table_info(receipts)")}
    return [name for name in _ADDED if name not in there]
