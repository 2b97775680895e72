"""A witness's folder: its key, the logs that it knows, and what it cosigned of each last."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from overspill.errors import ConfigurationError, UsageError
from overspill.releasing.files import load_note_key, make_note_key
from overspill.state.owned_file import make_owned
from overspill.trust.log import mldsa
from overspill.trust.log.note import COSIGNATURE_V1, ML_DSA_44, SignerKey, VerifierKey
from overspill.trust.log.witness import Answer, Cosigned, decide

_KEY: Final = "witness.key"
_STATE: Final = "witness.sqlite"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS logs (
    origin TEXT PRIMARY KEY, key TEXT NOT NULL,
    size INTEGER NOT NULL DEFAULT 0, root BLOB NOT NULL
) STRICT
"""


class WitnessStore:
    """A witness that never cosigns what does not extend its last checkpoint.

    Looking at the memory, cosigning and storing are one transaction: requests at the same time, in
    this process or another, come one after the other, and no answer leaves before it is stored.
    Methods raise ``ConfigurationError`` for a folder that cannot be used.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._state = folder / _STATE
        self._clock = clock
        self.key: SignerKey = load_note_key(folder / _KEY)

    @classmethod
    def create(cls, folder: Path, name: str, kind: int = COSIGNATURE_V1) -> WitnessStore:
        """A witness of its own with a new key, ``COSIGNATURE_V1`` or ``ML_DSA_44``.

        Raises ``UsageError`` where there is one, ``LogInvalid`` where ML-DSA is not known.
        """
        if kind == ML_DSA_44:
            mldsa.public_of(bytes(32))
        make_note_key(folder / _KEY, name, kind)
        return cls(folder)

    def add_log(self, key: VerifierKey, origin: str | None = None) -> None:
        """Cosign this log from now on. Raises ``UsageError`` for one that has another key here."""
        name = origin or key.name
        with self._transaction() as db:
            row = db.execute("SELECT key FROM logs WHERE origin = ?", (name,)).fetchone()
            if row is not None and row[0] != str(key):
                raise UsageError(
                    f"This witness knows {name} by another key.", mend="A new key is a new log."
                )
            db.execute(
                "INSERT OR IGNORE INTO logs (origin, key, root) VALUES (?, ?, ?)",
                (name, str(key), Cosigned().root),
            )

    def add_checkpoint(self, body: bytes) -> Answer:
        """The answer to a request of the tlog-witness protocol; see :func:`decide`."""
        with self._transaction() as db:
            rows = db.execute("SELECT origin, key, size, root FROM logs").fetchall()
            logs = {origin: VerifierKey.parse(key) for origin, key, _, _ in rows}
            last = {origin: Cosigned(size, root) for origin, _, size, root in rows}
            answer = decide(body, logs, last.__getitem__, self.key, int(self._clock()))
            if answer.remember is not None:
                db.execute(
                    "UPDATE logs SET size = ?, root = ? WHERE origin = ?",
                    (answer.remember.size, answer.remember.root, answer.origin),
                )
        return answer

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        make_owned(self._state, "The witness's state")
        try:
            with closing(sqlite3.connect(self._state, timeout=10)) as db:
                db.execute(_SCHEMA)
                db.execute("BEGIN IMMEDIATE")
                with db:
                    yield db
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"The witness's state {self._state} cannot be used: {error}.",
                mend="Do not start it anew: a witness that forgets may cosign a fork.",
            ) from error
