"""What answers took, by measured use: tokens, money and an estimate of energy. No text is kept.

The cost is by the price on the card at that moment, so a price that changes later changes nothing
that was spent.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from overspill.errors import ConfigurationError
from overspill.wal import use_wal

KEPT_BACK = 32
"""Answers that cost nothing are written so many at a time."""
KEPT_AT_MOST = 4096
"""Where nothing can be written, the oldest beyond so many are given up."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spending (
    unix_s INTEGER NOT NULL, app TEXT NOT NULL, route TEXT NOT NULL, model TEXT NOT NULL,
    outcome TEXT NOT NULL, is_confirmed INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, cost REAL NOT NULL, joules REAL NOT NULL
) STRICT
"""
_SUMS = """
SELECT route, model, COUNT(*), SUM(1 - is_confirmed), SUM(prompt_tokens), SUM(completion_tokens),
       SUM(cost), SUM(joules)
FROM spending WHERE unix_s >= ? GROUP BY route, model ORDER BY SUM(cost) DESC, route, model
"""


@dataclass(frozen=True, slots=True)
class Spent:
    """One try on one route. ``outcome`` is a finish reason, an error's code or ``left``.

    With ``is_confirmed`` the tokens are those of the end that came (and of the receipt); without,
    what was seen of an answer that had no end: the node's ledger has as many or a few more.
    ``cost`` is in currency units, ``joules`` the device's own, an estimate.
    """

    unix_s: int
    app: str
    route: str
    model: str
    outcome: str
    is_confirmed: bool
    prompt_tokens: int
    completion_tokens: int
    cost: float
    joules: float = 0.0


@dataclass(frozen=True, slots=True)
class Spending:
    """What one model took on one route; of ``tries``, ``unconfirmed`` had no end."""

    route: str
    model: str
    tries: int
    unconfirmed: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    joules: float

    @property
    def cost_per_mtok(self) -> float | None:
        """Currency units per million tokens of prompts and answers, as measured; None for none."""
        tokens = self.prompt_tokens + self.completion_tokens
        return 1e6 * self.cost / tokens if tokens else None


class SpendingStore:
    """One SQLite file, readable by its owner only; without a path it remembers while it lives.

    Every method raises ``ConfigurationError`` when the file cannot be used.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._kept_back: list[Spent] = []
        self._memory: sqlite3.Connection | None = None

    def add(self, spent: Spent) -> None:
        """Write a try down; what cost money at once."""
        self._kept_back.append(spent)
        del self._kept_back[:-KEPT_AT_MOST]
        if spent.cost > 0 or len(self._kept_back) >= KEPT_BACK:
            self.flush()

    def flush(self) -> None:
        """Write what was kept back; it stays so while it cannot be written."""
        if not self._kept_back:
            return
        marks = ", ".join("?" * len(fields(Spent)))
        with self._connect() as db:
            rows = [astuple(one) for one in self._kept_back]
            db.executemany(f"INSERT INTO spending VALUES ({marks})", rows)  # noqa: S608
        del self._kept_back[: len(rows)]

    def sums(self, since_unix_s: int = 0) -> list[Spending]:
        """By route and model, the most expensive first."""
        self.flush()
        with self._connect() as db:
            return [Spending(*row) for row in db.execute(_SUMS, (since_unix_s,))]

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        if self._path is None:
            if self._memory is None:
                self._memory = sqlite3.connect(":memory:", check_same_thread=False)
                self._memory.execute(_SCHEMA)
            with self._memory:
                yield self._memory
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path.touch(mode=0o600, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=2)) as db, db:
                use_wal(db)
                db.execute(_SCHEMA)
                yield db
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"The spending in {self._path} cannot be used: {error}.",
                mend="Make room, or move the file away.",
            ) from error
