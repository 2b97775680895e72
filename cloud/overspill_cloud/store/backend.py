"""The two databases, and what differs between them: opening, locking, failing, the disk."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError

from overspill.errors import BusyError, ConfigurationError, MissingExtra
from overspill.wal import begin_among_writers, use_wal

FILE_NAME: Final = "node.sqlite3"
LOCK_TIMEOUT_S: Final = 5
CONNECT_TIMEOUT_S: Final = 3
POOL: Final = 4
"""Connections of one replica to its PostgreSQL."""
_VERIFIED = ("verify-ca", "verify-full")


class StoreUnavailable(BusyError):
    """The database is gone, locked or full. What the database said is the cause, and stays here."""

    def __init__(self) -> None:
        super().__init__(
            "The node cannot reach its records now. (STATE)",
            mend="Try again later.",
            retry_after_s=1.0,
            reason="STATE",
        )


@dataclass(frozen=True, slots=True)
class Backend:
    """An opened database. ``name`` is what people are told; it holds no password."""

    engine: sa.Engine
    name: str
    folder: Path | None = None

    @property
    def is_postgres(self) -> bool:
        """PostgreSQL, and not SQLite."""
        return self.engine.dialect.name == "postgresql"

    @property
    def file(self) -> Path:
        """SQLite's file."""
        if self.folder is None:
            raise ValueError(f"{self.name} is no file")
        return self.folder / FILE_NAME

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One snapshot for reading. Raises ``StoreUnavailable``."""
        with self._transaction(writes=False) as db:
            yield db

    @contextmanager
    def write(self, patience_s: float | None = None) -> Iterator[sa.Connection]:
        """One transaction, committed at the end of the block. ``patience_s`` (seconds) waits for a
        file's lock longer than requests do. Raises ``StoreUnavailable``."""
        with self._transaction(writes=True, patience_s=patience_s) as db:
            yield db

    @contextmanager
    def look(self) -> Iterator[sa.Connection]:
        """A single statement that reads, with no transaction around it: for what each request
        asks. Raises ``StoreUnavailable``."""
        with self._failing_typed(), self.engine.connect() as db:
            if self.is_postgres:
                db.execution_options(isolation_level="AUTOCOMMIT")
            else:
                db.execution_options(single=True)
            yield db

    @contextmanager
    def _transaction(
        self, *, writes: bool, patience_s: float | None = None
    ) -> Iterator[sa.Connection]:
        with self._failing_typed(), self.engine.connect() as db:
            db.execution_options(writes=writes, patience_s=patience_s)
            with db.begin():
                yield db

    @contextmanager
    def _failing_typed(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.TimeoutError as error:  # every connection of the pool is busy
            raise StoreUnavailable from error
        except sa.exc.DatabaseError as error:
            if isinstance(error, IntegrityError | DataError):
                raise
            raise StoreUnavailable from error
        except sa.exc.InterfaceError as error:
            raise StoreUnavailable from error
        except sqlite3.DatabaseError as error:  # from the driver itself, in ``driver``
            if isinstance(error, sqlite3.IntegrityError | sqlite3.DataError):
                raise
            raise StoreUnavailable from error

    @contextmanager
    def driver(self) -> Iterator[sqlite3.Connection]:
        """A connection as SQLite's driver has it, for what each request asks: the way there through
        SQLAlchemy takes twenty times what such a statement runs. What is not committed is rolled
        back at the end of the block. Raises ``StoreUnavailable``."""
        with self._failing_typed():
            pooled = self.engine.raw_connection()
            try:
                yield cast(sqlite3.Connection, pooled.driver_connection)
            finally:
                pooled.close()

    def now_unix(self) -> int | None:
        """The server's time; None for a file. Raises ``StoreUnavailable``."""
        if not self.is_postgres:
            return None
        with self.read() as db:
            return int(db.execute(sa.text("SELECT extract(epoch FROM now())")).scalar_one())

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that knows ON CONFLICT: both databases say it alike."""
        return postgresql.insert(table) if self.is_postgres else sqlite.insert(table)

    def sync(self) -> None:
        """Return once what was committed survives a power cut.

        PostgreSQL's commit waits for that itself. SQLite's does not (see ``_set_pragmas``): its WAL
        is synced here, outside of the lock that other writers wait for. No lock of SQLite's is on
        the WAL, so none is lost when it is closed.
        """
        if self.is_postgres:
            return
        wal = self.file.with_name(f"{FILE_NAME}-wal")
        with suppress(FileNotFoundError):  # folded into the file by a checkpoint, which syncs
            descriptor = os.open(wal, os.O_RDWR)
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise StoreUnavailable from error
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_sqlite(folder: Path) -> Backend:
    """The file in ``folder``, both made private. Raises ``ConfigurationError``."""
    path = folder / FILE_NAME
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        raise ConfigurationError(
            f"The state folder {folder} cannot be used: {error.strerror}.",
            mend="Give a folder of your own with --state.",
        ) from error
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        connect_args={"timeout": LOCK_TIMEOUT_S, "check_same_thread": False},
    )
    sa.event.listen(engine, "connect", _set_pragmas)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return Backend(engine, str(path), folder)


def open_postgres(url: str) -> Backend:
    """The database at ``postgresql://USER@HOST/NAME``. Raises ``ConfigurationError``: for another
    URL, one with a password, one that leaves the machine without a verified server."""
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError) as error:
        raise _bad_url("it is not understood") from error
    if parsed.drivername != "postgresql":
        raise _bad_url("it does not begin with postgresql://")
    if parsed.password is not None or "password" in parsed.query:
        raise _bad_url("it has a password, which every user of this machine could see")
    if not _is_local(parsed) and parsed.query.get("sslmode") not in _VERIFIED:
        raise _bad_url("it leaves this machine, and the server would not be verified")
    options: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "tcp_user_timeout": LOCK_TIMEOUT_S * 1000,
        "application_name": "overspill-cloud",
        "options": f"-c statement_timeout={LOCK_TIMEOUT_S}s -c lock_timeout={LOCK_TIMEOUT_S}s "
        f"-c idle_in_transaction_session_timeout={LOCK_TIMEOUT_S}s",
    }
    try:
        engine = sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            connect_args=options,
            pool_size=POOL,
            max_overflow=0,
            pool_timeout=LOCK_TIMEOUT_S,
            pool_pre_ping=True,  # a server that was restarted is met again without a failed call
        )
    except ImportError as error:
        raise MissingExtra("A PostgreSQL database", "postgres") from error
    return Backend(engine, parsed.set(username=None, query={}).render_as_string())


def _bad_url(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The database's URL cannot be used: {why}.",
        mend="Give postgresql://USER@HOST/NAME?sslmode=verify-full; the password from ~/.pgpass.",
    )


def _is_local(url: sa.URL) -> bool:
    asked = url.query.get("host", url.host or "")
    hosts: Sequence[str] = asked.split(",") if isinstance(asked, str) else asked
    return all(_is_local_host(host) for host in hosts)


def _is_local_host(host: str) -> bool:
    if not host or host.startswith("/") or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _set_pragmas(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so
    # NORMAL: a commit survives a killed process without an fsync of its own. After a power cut
    # the last ones may be gone, and with them the node's key: nothing old can be replayed then.
    # The ledger is synced by who writes it.
    for pragma in (f"busy_timeout={round(LOCK_TIMEOUT_S * 1000)}", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")
    use_wal(connection)


def _begin_sqlite(db: sa.Connection) -> None:
    options = db.get_execution_options()
    if options.get("single"):
        return
    patience_s = options.get("patience_s")
    if patience_s is not None:
        begin_among_writers(cast(sqlite3.Connection, db.connection.driver_connection), patience_s)
        return
    # A reader that turns writer may find that another was faster, and then nothing helps it.
    writes = options.get("writes", True)
    db.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


class DriverStatement:
    """A statement of SQLAlchemy's in SQLite's words, compiled once."""

    def __init__(self, statement: sa.Executable) -> None:
        compiled = statement.compile(dialect=sqlite.dialect())  # type: ignore[attr-defined]  # ClauseElement
        self.text = str(compiled)
        self._names = tuple(compiled.positiontup or ())

    def run(self, db: sqlite3.Connection, values: Mapping[str, object]) -> list[Any]:
        """Its rows, with the values by the names of its parameters."""
        return db.execute(self.text, [values[name] for name in self._names]).fetchall()


class Part:
    """A part of the store, over the database that all parts share."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
