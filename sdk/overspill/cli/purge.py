"""`overspill purge`: removes everything that overspill put on this machine, and nothing else."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from overspill.cli.common import Json, print_json
from overspill.cli.leavings import Leavings, find_leavings
from overspill.cli.units import Manager, daemon_runs, is_reachable, run_all, this_manager
from overspill.config import Places, default_places
from overspill.errors import BusyError, ConfigurationError, MissingExtra, UsageError
from overspill.identity.keyring import KeyringStore


@dataclass(frozen=True, slots=True)
class Purge:
    """All that would go: files by place, unit files, keys; and the folder around all of it."""

    leavings: Leavings
    manager: Manager | None
    keys: tuple[KeyringStore, ...]
    places: Places

    @property
    def units(self) -> tuple[Path, ...]:
        """The service manager's files that are ours."""
        return self.manager.installed if self.manager else ()

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(one.size_bytes for one in self.leavings.ours)

    @property
    def is_empty(self) -> bool:
        """Nothing of ours is here."""
        return not (self.leavings.ours or self.units or self.keys)

    def as_dict(self, *, removed: bool) -> dict[str, Any]:
        """The document of ``--json``."""
        ours = self.leavings.ours
        return {
            "removed": removed,
            "bytes": self.size_bytes,
            "places": [
                {"path": str(o.path), "what": o.what, "files": len(o.files), "bytes": o.size_bytes}
                for o in ours
            ],
            "units": [str(file) for file in self.units],
            "keys": [key.place for key in self.keys],
            "kept": [str(path) for path in self.leavings.kept],
        }


def register(app: typer.Typer) -> None:
    """Add the verb of this file."""
    app.command("purge")(purge)


def purge(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list it.")] = False,
    as_json: Json = False,
) -> None:
    """Remove settings, models, receipts, keys, caches and the service from this machine.

    Files that overspill did not make are listed and stay; the package itself is pip's to remove.
    """
    found = _find(default_places())
    document = found.as_dict(removed=not dry_run)
    if not as_json:
        _show(found)
    if not (dry_run or found.is_empty):
        _check_idle(found)
        if not yes:
            _ask(as_json)
        _remove(found)
    if as_json:
        print_json(document)
    elif not (dry_run or found.is_empty):
        print(f"Removed, {_size(found.size_bytes)}. The package: pip uninstall overspill")


def _find(places: Places) -> Purge:
    manager = None
    with suppress(UsageError):  # no service manager on this system
        manager = this_manager()
    return Purge(find_leavings(places), manager, _keys(places), places)


def _keys(places: Places) -> tuple[KeyringStore, ...]:
    """The keychain's entries of this device's key, which are named for the file's place."""
    found = []
    for name in ("device-key", "device-key.next"):
        try:
            store = KeyringStore(name=str((places.state / name).absolute()))
        except MissingExtra:
            return ()
        if store.is_usable and _holds(store):
            found.append(store)
    return tuple(found)


def _holds(store: KeyringStore) -> bool:
    try:
        return store.load() is not None
    except ConfigurationError:  # damaged, expired or locked away: it is there
        return True


def _ask(as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise UsageError("Nobody is there to be asked.", mend="Run: overspill purge --yes")
    typer.confirm("Remove all of it for good?", abort=True, default=False, err=True)


def _check_idle(found: Purge) -> None:
    """Raises ``BusyError`` while a daemon or a node runs."""
    if daemon_runs(found.places):
        how = "run overspill service uninstall" if found.units else "end overspill serve (Ctrl-C)"
        raise BusyError("A daemon runs and uses these files.", mend=f"First {how}.")
    if _is_open(found.places.state / "cloud" / "node.sqlite3"):
        raise BusyError("A node runs and uses these files.", mend="First end overspill-cloud.")


def _is_open(database: Path) -> bool:
    """Whether another process has an SQLite database open: each holds a lock while it is in WAL
    mode, so that nobody gets it alone."""
    if not database.is_file():
        return False
    try:
        with closing(
            sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=0)
        ) as found:
            found.isolation_level = None
            found.execute("PRAGMA locking_mode = EXCLUSIVE")
            found.execute("BEGIN EXCLUSIVE")
            found.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:  # a damaged one is nobody's
        return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
    return False


def _remove(found: Purge) -> None:
    """Raises ``ConfigurationError`` naming what could not be removed, after all that could."""
    _remove_units(found)
    for key in found.keys:
        key.delete()
    failed = [_told(file, error) for file in _files(found) if (error := _unlink(file))]
    for folder in _folders(found):
        with suppress(OSError):  # what was kept is in it
            folder.rmdir()
    if failed:
        raise ConfigurationError(
            f"{len(failed)} files could not be removed: {'; '.join(failed[:3])}.",
            mend="Mend that, and run this again.",
        )


def _remove_units(found: Purge) -> None:
    """First the manager lets go of them: a socket unit would start the daemon again."""
    if found.manager is None or not found.units:
        return
    files, reachable = found.units, is_reachable(found.manager)
    run_all(found.manager.stop, reachable=reachable)
    for file in files:
        file.unlink()
    run_all(found.manager.after_removal, reachable=reachable)


def _files(found: Purge) -> list[Path]:
    return [file for one in found.leavings.ours for file in one.files]


def _folders(found: Purge) -> list[Path]:
    """Deepest first; at the end the folder around them, where OVERSPILL_HOME made one."""
    folders = {folder for one in found.leavings.ours for folder in one.folders}
    homes = {found.places.config.parent} if found.places.config.name == "config" else set()
    deepest = sorted(folders, key=lambda folder: len(folder.parts), reverse=True)
    return [*deepest, *homes]


def _unlink(file: Path) -> OSError | None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        return error
    return None


def _told(file: Path, error: OSError) -> str:
    return f"{file} ({error.strerror})"


def _show(found: Purge) -> None:
    if found.is_empty:
        print("Nothing of overspill is on this machine but the package: pip uninstall overspill")
    for one in found.leavings.ours:
        print(f"{_size(one.size_bytes):>12}  {one.what:<12} {one.path} ({len(one.files)} files)")
    for file in found.units:
        print(f"{'':>12}  {'service':<12} {file}")
    for key in found.keys:
        print(f"{'':>12}  {'key':<12} {key.place}")
    for path in found.leavings.kept:
        print(f"{'':>12}  {'stays':<12} {path} (not made by overspill)")


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} bytes"
