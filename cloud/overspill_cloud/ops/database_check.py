"""What `overspill-cloud doctor` says of where nodes remember; nothing is written there."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from overspill.errors import ConfigurationError
from overspill_cloud.store import Backend, open_backend
from overspill_cloud.store.backend import FILE_NAME, StoreUnavailable
from overspill_cloud.store.schema import SCHEMA_VERSION, differences, found

_UPGRADE: Final = "Run: overspill-cloud db upgrade --database URL"
_READ_ONLY: Final = sa.text("SELECT current_setting('transaction_read_only') = 'on'")
_TLS: Final = sa.text("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl")


def look_at_database(folder: Path, url: str | None) -> str:
    """How it is reached and which schema it has. Raises ``ConfigurationError`` for one that cannot
    be reached or used, takes no writes, or has another schema."""
    if url is None and not (folder / FILE_NAME).exists():
        return "a file, made at the first start"
    with closing(open_backend(folder, url)) as backend:
        version = found(backend)
        if version < SCHEMA_VERSION and backend.is_postgres:
            raise ConfigurationError(
                f"{backend.name} has schema {version}; this version needs {SCHEMA_VERSION}.",
                mend=_UPGRADE,
            )
        try:
            road = _road(backend) if backend.is_postgres else "a file"
            problems = differences(backend) if version == SCHEMA_VERSION else []
        except StoreUnavailable as error:
            raise ConfigurationError(
                f"{backend.name} does not answer as it should.",
                mend="See: overspill-cloud db check",
            ) from error
    if problems:
        raise ConfigurationError(
            f"{backend.name}: the schema differs: {problems[0]}.",
            mend="See: overspill-cloud db check",
        )
    upgraded = "" if version == SCHEMA_VERSION else ", upgraded at the next start"
    return f"{backend.name}, {road}, schema {version}{upgraded}"


def _road(backend: Backend) -> str:
    """How a server is reached: by TLS, or without leaving this machine (``open_postgres`` refuses
    the rest)."""
    with backend.read() as db:
        if db.execute(_READ_ONLY).scalar_one():
            raise ConfigurationError(
                f"{backend.name} takes no writes: a standby, or set to read only.",
                mend="Name the primary server.",
            )
        protocol = db.execute(_TLS).scalar_one_or_none()
    return str(protocol) if protocol else "on this machine, without TLS"
