"""What overspill has put on a machine, by name: the folders of :class:`~overspill.config.Places`.

A name that is not in the table was made by somebody else and is kept, and so is every link: what
it points at is outside of these folders or was put there on purpose.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from overspill.config import Places
from overspill.models.store import NOTE, PULLING

_DATABASE: Final = ("", "-wal", "-shm", "-journal")
_STATE: Final = (
    *(
        f"{db}.sqlite{end}"
        for db in ("receipts", "spending", "grants", "logs")
        for end in _DATABASE
    ),
    *("pace.json", ".pace.json.*", "pace.*.new", "last-error.txt", ".probe", ".selftest-*"),
    *("device-key", "device-key.next", ".device-key*", "policy-key", ".policy-key.*"),
    *("tokens.json", "tokens.json.lock", ".tokens.json.*"),
    *("daemon.json", "daemon.lock", "daemon.[0-9]*"),
)
_LOGS: Final = ("daemon.log", "daemon.log.[0-9]", "launchd.err")
_NODE: Final = (
    *(f"node.sqlite3{end}" for end in _DATABASE),
    *("tpm-authority.key", "tpm-authority.pem", "dev-ed25519.key", "dev-ed25519.pub"),
    *(".tpm-authority.*", ".dev-ed25519.key.*", "fleet.addresses", ".fleet.addresses.*"),
)
_SOCKETS: Final = (
    *("overspill.sock", "overspill-grpc.sock", "overspill.sock.lock"),
    *("overspill-next.sock", "overspill-grpc-*.sock"),
    *("overspill-loopback.json", "overspill-loopback.[0-9]*"),
)


@dataclass(frozen=True, slots=True)
class Leaving:
    """Something that overspill made: ``files`` in it, and folders that go when they are empty.

    ``size_bytes`` is what its files hold.
    """

    path: Path
    what: str
    size_bytes: int
    files: tuple[Path, ...]
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Leavings:
    """What is ours, and what lies in our folders and is not."""

    ours: tuple[Leaving, ...]
    kept: tuple[Path, ...]


def find_leavings(places: Places) -> Leavings:
    """Look through all places; nothing is changed and no link is followed."""
    ours: list[Leaving] = []
    kept: list[Path] = []
    for folder, (what, names, inside) in _table(places).items():
        _look(folder, what, names, ours, kept, inside=inside)
    _models(places.data / "models", ours, kept)
    for tree in (
        places.state / "tuf",
        places.state / "cloud" / "swtpm",
        places.cache / "bench",
        places.cache / "peers",
    ):
        _tree(tree, "cache", ours, kept)
    return Leavings(tuple(ours), tuple(dict.fromkeys(kept)))


_Names = tuple[str, ...]


def _table(places: Places) -> dict[Path, tuple[str, _Names, _Names]]:
    """Each folder with what it holds, the names that are ours, and folders looked at elsewhere.

    On some systems several places are one folder: then its names are those of all of them.
    """
    rows: tuple[tuple[Path, str, _Names, _Names], ...] = (
        (places.config, "settings", ("config.toml",), ()),
        (places.data, "data", (), ("models",)),
        (places.state, "state", _STATE, ("log", "cloud", "tuf", "run")),
        (places.state / "log", "log", _LOGS, ()),
        (places.state / "cloud", "node", _NODE, ("swtpm",)),
        (places.cache, "cache", (), ("bench", "peers")),
        (places.state / "run", "sockets", _SOCKETS, ()),
        (places.runtime, "sockets", _SOCKETS, ()),
    )
    table: dict[Path, tuple[str, _Names, _Names]] = {}
    for folder, what, names, inside in rows:
        before = table.get(folder, (what, (), ()))
        table[folder] = (before[0], before[1] + names, before[2] + inside)
    return table


def _look(
    folder: Path,
    what: str,
    names: _Names,
    ours: list[Leaving],
    kept: list[Path],
    *,
    inside: _Names = (),
) -> None:
    """One folder by the names in it; those in ``inside`` are looked at elsewhere."""
    files: list[Path] = []
    if not _is_real(folder, kept):
        return
    for entry in _entries(folder):
        if entry.name in inside and entry.is_dir(follow_symlinks=False):
            continue
        plain = not entry.is_symlink() and not entry.is_dir(follow_symlinks=False)
        known = any(fnmatchcase(entry.name, name) for name in names)
        (files if plain and known else kept).append(Path(entry.path))
    ours.append(Leaving(folder, what, _size(files), tuple(files), (folder,)))


def _models(folder: Path, ours: list[Leaving], kept: list[Path]) -> None:
    """Each model by its own note: the files whose digests it has; all of a half pull."""
    if not _is_real(folder, kept):
        return
    for entry in _entries(folder):
        path = Path(entry.path)
        if entry.name == PULLING:
            _tree(path, "half a pull", ours, kept)
        elif entry.is_dir(follow_symlinks=False):
            _model(path, (NOTE, *_noted(path)), ours, kept)
        else:
            kept.append(path)
    ours.append(Leaving(folder, "models", 0, (), (folder,)))


def _model(folder: Path, names: tuple[str, ...], ours: list[Leaving], kept: list[Path]) -> None:
    """The named files of one folder, and those that are named in folders of it."""
    below: dict[str, list[str]] = {}
    for name in names:
        first, slash, rest = name.partition("/")
        if slash and first not in ("", ".", ".."):
            below.setdefault(first, []).append(rest)
    here = tuple(_literally(name) for name in names if "/" not in name)
    _look(folder, "model", here, ours, kept, inside=tuple(below))
    for part, rests in below.items():
        _model(folder / part, tuple(rests), ours, kept)


def _noted(model: Path) -> tuple[str, ...]:
    note = model / NOTE
    if note.is_symlink():
        return ()
    with suppress(OSError, ValueError, TypeError, KeyError):
        return tuple(str(name) for name in json.loads(note.read_text("utf-8"))["sha256"])
    return ()


def _literally(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _tree(folder: Path, what: str, ours: list[Leaving], kept: list[Path]) -> None:
    """All below a folder that only overspill writes to; of a link, the link itself."""
    if not _is_real(folder, kept):
        return
    files: list[Path] = []
    folders: list[Path] = []
    for where, below, names in os.walk(folder, topdown=False, followlinks=False):
        links = [name for name in below if (Path(where) / name).is_symlink()]
        files.extend(Path(where) / name for name in (*names, *links))
        folders.append(Path(where))
    ours.append(Leaving(folder, what, _size(files), tuple(files), tuple(folders)))


def _is_real(folder: Path, kept: list[Path]) -> bool:
    if folder.is_symlink():
        kept.append(folder)
        return False
    return folder.is_dir()


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)


def _size(files: list[Path]) -> int:
    return sum(file.lstat().st_size for file in files)
