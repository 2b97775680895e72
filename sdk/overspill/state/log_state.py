"""What this client has seen of transparency logs: it only ever grows.

One row an origin with the largest tree, the highest release and floor; and one row for each split
view, which blocks its origin until a person has decided, and stays on record after that.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from overspill.errors import ConfigurationError, SplitView, UsageError
from overspill.state.owned_file import make_owned
from overspill.types.transparency import LogMemory, SplitEvidence

_WHAT = "The log state"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS logs (
    origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, checkpoint BLOB NOT NULL,
    edge BLOB NOT NULL, release_seq INTEGER NOT NULL, security_floor_seq INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS split_views (
    id TEXT PRIMARY KEY, origin TEXT NOT NULL, remembered BLOB NOT NULL, shown BLOB NOT NULL,
    seen_unix INTEGER NOT NULL, decided_unix INTEGER
) STRICT;
"""
_KEEP = """
INSERT INTO logs VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (origin) DO UPDATE SET
    size = excluded.size, root = excluded.root, checkpoint = excluded.checkpoint,
    edge = excluded.edge, release_seq = excluded.release_seq,
    security_floor_seq = excluded.security_floor_seq
"""


class LogStateStore:
    """Log memories in one SQLite file of this user.

    Every method raises ``ConfigurationError`` when the file cannot be used: also when it belongs to
    somebody else, is open to others or damaged. Nothing is then taken for a first contact.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def recall(self, origin: str) -> LogMemory:
        """What is known of a log; an empty memory at first contact."""
        with self._transaction() as db:
            return _recall(db, origin)

    def remember(self, seen: LogMemory) -> None:
        """Adds what a verification saw. It is never less than what is known already.

        Another process may have seen more meanwhile: the larger tree and the higher numbers stay.
        Raises ``SplitView`` when what it saw contradicts this: then both are kept as evidence.
        """
        with self._transaction() as db:
            known = _recall(db, seen.origin)
            larger = known if known.size > seen.size else seen
            is_split = known.size == seen.size and known.root != seen.root and known.size > 0
            if not is_split and not _covers(known, seen):
                values = (
                    seen.origin,
                    larger.size,
                    larger.root,
                    larger.checkpoint,
                    larger.edge,
                    max(known.release_seq, seen.release_seq),
                    max(known.security_floor_seq, seen.security_floor_seq),
                )
                db.execute(_KEEP, values)
        if is_split:
            raise SplitView(
                "7", origin=seen.origin, remembered=known.checkpoint, shown=seen.checkpoint
            )

    def keep_evidence(self, split: SplitView, now_unix: int) -> str:
        """Keeps both checkpoints and blocks the log; returns the evidence's id."""
        digest = hashlib.sha256(split.remembered + b"\x00" + split.shown).hexdigest()[:16]
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO split_views VALUES (?, ?, ?, ?, ?, NULL)",
                (digest, split.origin, split.remembered, split.shown, now_unix),
            )
        return digest

    def logs(self) -> list[LogMemory]:
        """Every log that was ever seen."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT origin FROM logs UNION SELECT origin FROM split_views ORDER BY 1"
            ).fetchall()
            return [_recall(db, origin) for (origin,) in rows]

    def split_views(self) -> list[SplitEvidence]:
        """All split views that nobody has decided, oldest first."""
        with self._transaction() as db:
            return _undecided(db)

    def decide(self, split_id: str, keep: LogMemory | None, now_unix: int) -> None:
        """A person's word about a split view: go on with ``keep``, or with what is remembered.

        The evidence stays on record. Raises ``UsageError`` for an id that waits for nobody.
        """
        with self._transaction() as db:
            found = [split for split in _undecided(db) if split.id == split_id]
            if not found:
                raise UsageError(
                    f"No split view '{split_id}' waits for a decision.",
                    mend="See: overspill trust log status",
                )
            db.execute("UPDATE split_views SET decided_unix = ? WHERE id = ?", (now_unix, split_id))
            if keep is not None:
                known = _recall(db, found[0].origin)
                seqs = (known.release_seq, known.security_floor_seq)
                tree = (keep.size, keep.root, keep.checkpoint, keep.edge)
                db.execute(_KEEP, (known.origin, *tree, *seqs))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        make_owned(self._path, _WHAT)
        try:
            with closing(sqlite3.connect(self._path, timeout=5)) as db:
                db.executescript(_SCHEMA)
                db.execute("BEGIN IMMEDIATE")  # nobody else writes between our reads and writes
                with db:
                    yield db
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"{_WHAT} {self._path} cannot be used: {error}.",
                mend="Find out what damaged it; moving it away makes this client forget all logs.",
            ) from error


def _covers(known: LogMemory, seen: LogMemory) -> bool:
    """Whether nothing would change: most verifications see what the one before saw."""
    numbers = (known.size, known.release_seq, known.security_floor_seq)
    return all(
        old >= new
        for old, new in zip(
            numbers, (seen.size, seen.release_seq, seen.security_floor_seq), strict=True
        )
    )


def _recall(db: sqlite3.Connection, origin: str) -> LogMemory:
    row = db.execute("SELECT * FROM logs WHERE origin = ?", (origin,)).fetchone()
    split = next((one for one in _undecided(db) if one.origin == origin), None)
    known = LogMemory(*row) if row else LogMemory(origin)
    return replace(known, split=split)


def _undecided(db: sqlite3.Connection) -> list[SplitEvidence]:
    rows = db.execute(
        "SELECT id, origin, remembered, shown, seen_unix FROM split_views "
        "WHERE decided_unix IS NULL ORDER BY seen_unix, id"
    )
    return [SplitEvidence(*row) for row in rows]
