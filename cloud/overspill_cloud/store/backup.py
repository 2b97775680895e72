"""``db backup``: SQLite's online backup, and pg_dump's for PostgreSQL."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from overspill.config import child_environment
from overspill.errors import ConfigurationError, UsageError
from overspill_cloud.store.backend import Backend

_PAGES: Final = 256
"""Copied at a time: between two the node writes on."""
_DUMP: Final = "pg_dump"


def backup_sqlite(backend: Backend, target: Path) -> int:
    """Copy the database to ``target`` (0600) while a node uses it; returns its bytes.

    The copy is of one moment, and is checked before it gets its name. Raises ``UsageError`` where
    there is something already, ``ConfigurationError`` where nothing can be written.
    """
    return _written_whole(target, lambda partial: _copy(backend.file, partial))


def backup_postgres(url: str, target: Path) -> int:
    """Dump the database to ``target`` (0600) by pg_dump: one snapshot, while replicas go on;
    returns its bytes. The password comes from ~/.pgpass, and is never asked for.

    Raises ``UsageError`` where there is something already; ``ConfigurationError``, naming the
    command, where there is no pg_dump, and where it failed.
    """
    program = shutil.which(_DUMP)
    if program is None:
        raise ConfigurationError(
            "Nothing was backed up: pg_dump is not on the PATH.",
            mend="Install PostgreSQL's client programs, or where they are run: "
            + shlex.join([_DUMP, *_dump_arguments(url, target)]),
        )
    return _written_whole(target, lambda partial: _dump(program, url, partial))


def restore_command(url: str, target: Path) -> str:
    """How a dump comes back, into an empty database."""
    words = ["pg_restore", "--exit-on-error", "--single-transaction", f"--dbname={url}"]
    return shlex.join([*words, str(target)])


def _written_whole(target: Path, write: Callable[[Path], None]) -> int:
    """What is half written never has the backup's name."""
    if target.exists():
        raise UsageError(f"{target} exists already.", mend="Give another --to.")
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.touch(mode=0o600)
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except (OSError, sqlite3.Error) as error:
        raise ConfigurationError(
            f"The backup could not be written to {target}: {error}.",
            mend="Make room, or give another --to.",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target.stat().st_size


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as ours, closing(sqlite3.connect(target)) as copy:
        ours.backup(copy, pages=_PAGES)
        # One file, that needs no other beside it.
        copy.execute("PRAGMA journal_mode=DELETE")
        [(verdict,)] = copy.execute("PRAGMA integrity_check").fetchall()
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"the copy is damaged ({verdict})")


def _dump(program: str, url: str, target: Path) -> None:
    ended = subprocess.run(
        [program, *_dump_arguments(url, target)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=child_environment(),
    )
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or ["it said nothing"]
        raise ConfigurationError(
            f"Nothing was backed up: pg_dump ended with {ended.returncode}: {said[0]}",
            mend="See that the database answers, and that ~/.pgpass (0600) has its password.",
        )


def _dump_arguments(url: str, target: Path) -> list[str]:
    return ["--format=custom", "--no-password", f"--file={target}", f"--dbname={url}"]
