"""``db check``: is the schema this version's, is the file whole, do ledger and quotas agree?"""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa

from overspill_cloud.store.backend import Backend
from overspill_cloud.store.schema import SCHEMA_VERSION, differences, found
from overspill_cloud.store.tables import APPEND_ONLY, devices, ledger, quota_leases, quota_usage


@dataclass(frozen=True, slots=True)
class Drift:
    """An account whose quota counts something else than the ledger has, in one period."""

    account: bytes
    period_unix: int
    ledger_tokens: int
    quota_tokens: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found. ``problems`` are sentences; ``ended_leases`` are harmless: they go when
    somebody leases again."""

    schema: int
    problems: tuple[str, ...] = ()
    drift: tuple[Drift, ...] = ()
    ledger_lines: int = 0
    leases: int = 0
    ended_leases: int = 0
    expected_schema: int = field(default=SCHEMA_VERSION)

    @property
    def is_good(self) -> bool:
        """Nothing to mend."""
        return self.schema == self.expected_schema and not self.problems and not self.drift


def check(backend: Backend, now_unix: int) -> Report:
    """Look at everything, change nothing. Raises ``ConfigurationError`` for a database that cannot
    be opened, ``StoreUnavailable`` for one that breaks meanwhile."""
    schema = found(backend)
    problems = _integrity(backend)
    if schema < SCHEMA_VERSION:
        return Report(schema, tuple(problems))
    problems += [f"The schema differs: {change}." for change in differences(backend)]
    with backend.read() as db:
        lines = db.execute(sa.select(sa.func.count()).select_from(ledger)).scalar_one()
        ended = quota_leases.c.expires_unix <= now_unix
        counts = sa.select(sa.func.count(), sa.func.count().filter(ended)).select_from(quota_leases)
        leases, gone = db.execute(counts).one()
        drift = _drift(db)
    return Report(schema, tuple(problems), tuple(drift), lines, leases - gone, gone)


def _drift(db: sa.Connection) -> list[Drift]:
    # One snapshot: a charge that is committed meanwhile is in both or in neither.
    account = sa.func.coalesce(devices.c.quota_account, ledger.c.thumbprint)
    tokens = sa.func.sum(ledger.c.prompt_tokens + ledger.c.completion_tokens)
    charged = (
        sa.select(account.label("account"), ledger.c.period_unix, tokens.label("tokens"))
        .join_from(ledger, devices, devices.c.thumbprint == ledger.c.thumbprint, isouter=True)
        .where(ledger.c.period_unix != 0)
        .group_by(account, ledger.c.period_unix)
    )
    said = {(bytes(row[0]), int(row[1])): int(row[2]) for row in db.execute(charged)}
    kept = {(bytes(row[0]), int(row[1])): int(row[2]) for row in db.execute(sa.select(quota_usage))}
    keys = sorted(said.keys() | kept.keys())
    found_ = (Drift(*key, said.get(key, 0), kept.get(key, 0)) for key in keys)
    return [one for one in found_ if one.ledger_tokens != one.quota_tokens]


def _integrity(backend: Backend) -> list[str]:
    with backend.read() as db:
        problems = _postgres_pages(db) if backend.is_postgres else _sqlite_pages(db)
        missing = set(APPEND_ONLY) - _triggers(db)
    return problems + [f"The trigger {name} is missing." for name in sorted(missing)]


def _sqlite_pages(db: sa.Connection) -> list[str]:
    lines = db.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    return [f"The file is damaged: {line}." for line in lines if line != "ok"]


def _postgres_pages(db: sa.Connection) -> list[str]:
    """PostgreSQL counts pages that fail their checksum where a cluster has them (initdb -k)."""
    failed = sa.text(
        "SELECT coalesce(checksum_failures, 0) FROM pg_stat_database"
        " WHERE datname = current_database()"
    )
    count = db.execute(failed).scalar_one_or_none() or 0
    return [f"{count} pages failed their checksum."] if count else []


def _triggers(db: sa.Connection) -> set[str]:
    if db.dialect.name == "postgresql":
        wanted = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled = 'O'"
    else:
        wanted = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    return set(db.execute(sa.text(wanted)).scalars())
