"""``overspill-cloud db``: upgrade, back up and check what nodes remember."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overspill.errors import ConfigurationError
from overspill.terminal import Verbs
from overspill_cloud.cli_options import (
    DatabaseOption,
    JsonOption,
    StateOption,
    iso,
    report,
    state_folder,
)

if TYPE_CHECKING:
    from overspill_cloud.store import Backend
    from overspill_cloud.store.check import Drift, Report

db = typer.Typer(
    cls=Verbs, no_args_is_help=True, help="Keep what nodes remember: upgrade, backup, check."
)


@db.command("upgrade")
def upgrade_database(
    state: StateOption = None, database: DatabaseOption = None, as_json: JsonOption = False
) -> None:
    """Bring the database to this version's schema, while nodes go on using it."""
    from overspill_cloud.store import open_backend
    from overspill_cloud.store.schema import upgrade

    with closing(open_backend(state_folder(state), database)) as backend:
        before, after = upgrade(backend)
        changed = f"upgraded from schema {before} to {after}" if before != after else "up to date"
        text = f"{backend.name}: {changed}."
    report({"database": backend.name, "before": before, "after": after}, text, as_json)


@db.command("backup")
def backup_database(
    to: Annotated[Path, typer.Option("--to", help="The file to write.")],
    state: StateOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the database while nodes go on; PostgreSQL by its own pg_dump."""
    from overspill_cloud.store import open_backend
    from overspill_cloud.store.backup import backup_postgres, backup_sqlite, restore_command

    with closing(open_backend(state_folder(state), database)) as backend:
        if database is not None:
            size, restore = backup_postgres(database, to), restore_command(database, to)
            text = f"{to}: {size} bytes. Comes back into an empty database by:\n{restore}"
            report({"backup": str(to), "bytes": size, "restore": restore}, text, as_json)
            return
        _need_file(backend)
        size = backup_sqlite(backend, to)
    report({"backup": str(to), "bytes": size}, f"{to}: {size} bytes, checked.", as_json)


@db.command("check")
def check_database(
    state: StateOption = None, database: DatabaseOption = None, as_json: JsonOption = False
) -> int:
    """Say whether the schema is this version's, the file whole, and the ledger what the quotas
    count. Exit 0 when all is well, else 1."""
    from overspill_cloud.store import open_backend
    from overspill_cloud.store.check import check

    with closing(open_backend(state_folder(state), database)) as backend:
        if database is None:
            _need_file(backend)
        found = check(backend, int(time.time()))
    facts: dict[str, Any] = {"good": found.is_good, "database": backend.name, **asdict(found)}
    facts["drift"] = [_drift_facts(drift) for drift in found.drift]
    report(facts, "\n".join(_lines(found)), as_json)
    return 0 if found.is_good else 1


def _need_file(backend: Backend) -> None:
    """Nothing is made by who only looks."""
    if backend.file.stat().st_size == 0:
        backend.file.unlink()
        raise ConfigurationError(
            f"There is no database in {backend.file.parent}.", mend="Give the node's --state."
        )


def _lines(found: Report) -> list[str]:
    is_new = found.schema == found.expected_schema
    schema = "" if is_new else f", this version's is {found.expected_schema}: db upgrade"
    lines = [f"schema     {found.schema}{schema}"]
    lines += [f"PROBLEM    {problem}" for problem in found.problems]
    lines += [
        f"DRIFT      {drift.account.hex()} from {iso(drift.period_unix)}: "
        f"the ledger has {drift.ledger_tokens} tokens, the quota {drift.quota_tokens}"
        for drift in found.drift
    ]
    lines.append(f"ledger     {found.ledger_lines} lines")
    lines.append(f"leases     {found.leases} in force, {found.ended_leases} ended")
    return [*lines, "all good" if found.is_good else "not good"]


def _drift_facts(drift: Drift) -> dict[str, Any]:
    return {
        "account": drift.account.hex(),
        "period": iso(drift.period_unix),
        "ledger_tokens": drift.ledger_tokens,
        "quota_tokens": drift.quota_tokens,
    }
