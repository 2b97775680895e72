"""Which schema a database has, and how it gets this version's: by alembic, while others use it.

Migrations only add: a replica of the version before goes on working on the newer schema. SQLite has
its number in ``PRAGMA user_version`` as well, so that an older overspill refuses the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError

from overspill.errors import ConfigurationError
from overspill.wal import is_busy
from overspill_cloud.store.backend import Backend, StoreUnavailable
from overspill_cloud.store.tables import metadata

SCHEMA_VERSION: Final = 2
MIGRATIONS: Final = Path(__file__).parent / "migrations"
PATIENCE_S: Final = 30.0
"""An upgrade's wait for a file that the version before goes on writing to, in seconds."""
_VERSION_TABLE = "alembic_version"
_VERSION = sa.text("SELECT version_num FROM alembic_version")
_LOCK: Final = 0x6F76_6572_7370_696C
"""Of one upgrade at a time, as PostgreSQL's advisory locks are named: "overspil"."""


def ready(backend: Backend) -> None:
    """Make a file ready for use; make sure that a server's database is.

    Raises ``ConfigurationError``: it cannot be used, is newer, or has to be upgraded first.
    """
    version = found(backend)
    if version == SCHEMA_VERSION:
        return
    if backend.is_postgres:
        raise ConfigurationError(
            f"{backend.name} has schema {version}; this version needs {SCHEMA_VERSION}.",
            mend="Run: overspill-cloud db upgrade --database URL",
        )
    upgrade(backend)


def upgrade(backend: Backend) -> tuple[int, int]:
    """Bring a database to this version's schema, all or nothing; returns the numbers before and
    after. Several at once are one. Raises ``ConfigurationError``."""
    before = found(backend)
    if before < SCHEMA_VERSION:
        try:
            with backend.write(PATIENCE_S) as db:
                if backend.is_postgres:
                    db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                _migrate(db, _found(db))
        except StoreUnavailable as error:
            raise _unusable(backend, error) from error
    return before, SCHEMA_VERSION


def found(backend: Backend) -> int:
    """The schema's number; 0 for an empty database. Raises ``ConfigurationError`` for one that
    cannot be used or is newer than this version."""
    try:
        with backend.read() as db:
            version = _found(db)
    except StoreUnavailable as error:
        raise _unusable(backend, error) from error
    if version > SCHEMA_VERSION:
        raise ConfigurationError(
            f"{backend.name} has schema {version}; this version knows {SCHEMA_VERSION}.",
            mend="Upgrade overspill, or give another folder with --state.",
        )
    return version


def _found(db: sa.Connection) -> int:
    noted = 0
    if db.dialect.name == "sqlite":
        noted = int(db.exec_driver_sql("PRAGMA user_version").scalar_one())
    if not sa.inspect(db).has_table(_VERSION_TABLE):
        return noted
    version = db.execute(_VERSION).scalar_one_or_none()
    return max(noted, int(version or 0))


def _migrate(db: sa.Connection, version: int) -> None:
    # Loaded where it is needed: most starts find their schema as it should be.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = db
    if version and not sa.inspect(db).has_table(_VERSION_TABLE):
        command.stamp(config, revision(version))  # a file from before there was alembic
    command.upgrade(config, revision(SCHEMA_VERSION))
    if db.dialect.name == "sqlite":
        db.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")


def revision(version: int) -> str:
    """Alembic's name of a schema."""
    return f"{version:04}"


def differences(backend: Backend) -> list[str]:
    """Where the tables are not those of this version, in words."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with backend.read() as db:
        # An SQLite column takes any integer, whatever its declared width.
        context = MigrationContext.configure(db, opts={"compare_type": backend.is_postgres})
        return [str(change) for change in compare_metadata(context, metadata)]


def _unusable(backend: Backend, error: StoreUnavailable) -> ConfigurationError:
    cause = error.__cause__
    what = cause.orig if isinstance(cause, DatabaseError) else cause
    if is_busy(what):
        return ConfigurationError(
            f"{backend.name} cannot be used: another process keeps it locked.",
            mend="Stop the process that has it open, or try again.",
        )
    return ConfigurationError(
        f"{backend.name} cannot be used: {type(what).__name__}.",
        mend="Check that the server answers."
        if backend.is_postgres
        else "Check the disk, or give another folder with --state.",
    )
