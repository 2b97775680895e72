"""``db backup``: SQLite's online backup; for PostgreSQL the command that makes one."""

from __future__ import annotations

import os
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

from overspill.errors import ConfigurationError, UsageError
from overspill_cloud.store.backend import Backend

_PAGES = 256
"""Copied at a time: between two the node writes on."""


def backup_sqlite(backend: Backend, target: Path) -> int:
    """Copy the database to ``target`` (0600) while a node uses it; returns its bytes.

    The copy is of one moment, and is checked before it gets its name. Raises ``UsageError`` where
    there is something already, ``ConfigurationError`` where nothing can be written.
    """
    if target.exists():
        raise UsageError(f"{target} exists already.", mend="Give another --to.")
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.touch(mode=0o600)
        _copy(backend.file, partial)
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
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def dump_command(url: str, target: Path) -> str:
    """pg_dump's command line: one snapshot, while replicas go on. It reads ~/.pgpass as we do."""
    words = ["pg_dump", "--format=custom", f"--file={target}", f"--dbname={url}"]
    return shlex.join(words)


def restore_command(url: str, target: Path) -> str:
    """How such a dump comes back, into an empty database."""
    words = ["pg_restore", "--exit-on-error", "--single-transaction", f"--dbname={url}"]
    return shlex.join([*words, str(target)])
