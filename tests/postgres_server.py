"""A real PostgreSQL for tests, from Debian's packages: on a Unix socket, in a folder of its own.

It refuses to run as root; there it runs as ``postgres`` or ``nobody``. ``fsync`` is off: processes
are killed here, never the machine.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

MISSING = "PostgreSQL is not installed; on Debian: apt-get install postgresql"
_FOLDERS = "/usr/lib/postgresql/*/bin/initdb"
_USER = "overspill"
START_TIMEOUT_S = 60


def programs() -> Path | None:
    """The folder of initdb and postgres, of the newest version; None where it is not installed."""
    found = sorted(Path("/").glob(_FOLDERS.removeprefix("/")), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return None if on_path is None else Path(os.path.realpath(on_path)).parent


@dataclass
class PostgresServer:
    """A cluster under ``folder``; ``stop`` and ``start`` as an operator, or a crash, would."""

    folder: Path
    bin: Path
    process: subprocess.Popen[bytes] | None = None
    _count: int = field(default=0)

    def url(self, name: str) -> str:
        """Of a database of this cluster."""
        return f"postgresql://{_USER}@/{name}?host={self.folder}"

    def new_database(self) -> str:
        """The URL of an empty one."""
        self._count += 1
        name = f"fleet_{os.getpid()}_{self._count}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str) -> None:
        """Run one statement as the cluster's owner."""
        engine = sa.create_engine(
            sa.make_url(self.url("postgres")).set(drivername="postgresql+psycopg"),
            isolation_level="AUTOCOMMIT",
            poolclass=sa.NullPool,
        )
        with engine.connect() as db:
            db.exec_driver_sql(statement)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = self.folder / "log"
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "max_connections": "60",
            "shared_buffers": "16MB",
        }
        chosen = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*_as_user(), self.bin / "postgres", "-D", self.folder / "data", *chosen],
                stdout=out,
                stderr=out,
                cwd=self.folder,
            )
        ready = [self.bin / "pg_isready", "-q", "-h", self.folder, "-t", "1"]
        for _ in range(START_TIMEOUT_S * 20):
            if subprocess.run(ready, check=False).returncode == 0:
                return
            if self.process.poll() is not None:
                break
            _pause()
        raise RuntimeError(f"PostgreSQL did not start: {log.read_text(errors='replace')[-2000:]}")

    def stop(self, *, by_force: bool = True) -> None:
        """Immediately, as in a crash, or else in good order."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT if by_force else signal.SIGINT)
            self.process.wait()
            self.process = None

    def freeze(self, *, on: bool) -> None:
        """Stop every process of it where it stands, or let them go on."""
        assert self.process is not None
        children = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], check=False, capture_output=True, text=True
        )
        for pid in (self.process.pid, *map(int, children.stdout.split())):
            os.kill(pid, signal.SIGSTOP if on else signal.SIGCONT)


@contextmanager
def serving() -> Iterator[PostgresServer]:
    """A cluster for as long as the block takes. Raises ``FileNotFoundError`` without programs."""
    found = programs()
    if found is None:
        raise FileNotFoundError(MISSING)
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = PostgresServer(folder, found)
    try:
        if (entry := _user()) is not None:
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        subprocess.run(
            [
                *_as_user(),
                found / "initdb",
                "-D",
                folder / "data",
                "-U",
                _USER,
                "-A",
                "trust",
                "--no-sync",
                "-k",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
        )
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _as_user() -> list[str]:
    # By a program, not by subprocess, which would fork this process for it: gRPC's handlers for a
    # fork can end the child before it has begun.
    if (entry := _user()) is None:
        return []
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]


def _pause() -> None:
    # Between two questions whether it answers; the condition decides, not the pause.
    threading.Event().wait(0.05)
