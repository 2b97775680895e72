"""What is pulled: files with their places and digests, and how a pull tells of its progress."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal

Runtime = Literal["llama.cpp", "mlx"]

SHA256: Final = "sha256"
GIT_BLOB: Final = "git-sha1"
"""The hub's digest of small files, git's object id: SHA-1 over ``blob <size>``, NUL, the bytes."""

_HEX_LENGTH: Final = {SHA256: 64, GIT_BLOB: 40}
_SAFE_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest that a file has to have; ``hex`` in lower case."""

    kind: str
    hex: str

    def __post_init__(self) -> None:
        length = _HEX_LENGTH.get(self.kind)
        if length is None or not re.fullmatch(rf"[0-9a-f]{{{length}}}", self.hex):
            raise ValueError(f"{self.kind}:{self.hex[:80]} is no digest")

    def __str__(self) -> str:
        return f"{self.kind}:{self.hex}"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file to fetch: where it is, what it is called here, and what is known of it.

    ``path`` is relative, with forward slashes; ``size_bytes`` and ``digest`` None are unknown.
    Raises ``ValueError`` for a path that could leave its folder.
    """

    url: str
    path: str
    size_bytes: int | None = None
    digest: Digest | None = None

    def __post_init__(self) -> None:
        if not is_safe_path(self.path):
            raise ValueError(f"{self.path[:120]!r} is no safe file name")


@dataclass(frozen=True, slots=True)
class PullPlan:
    """All that a pull would do, before a byte is fetched.

    ``name`` is what the model will be called here, ``source`` where it comes from, ``revision``
    the commit that is pinned, ``main`` the file (or "." for the folder) that a runtime opens.
    """

    name: str
    source: str
    runtime: Runtime
    main: str
    files: tuple[RemoteFile, ...]
    revision: str | None = None
    licence: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int | None:
        """Of all files; None where one's size is unknown."""
        sizes = [file.size_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def unpinned(self) -> tuple[str, ...]:
        """Files whose digest nobody told: it is pinned and shown when they are here."""
        return tuple(file.path for file in self.files if file.digest is None)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is; ``bytes_per_s`` over the last seconds, ``eta_s`` None while unknown.

    ``note`` says what a user has to know: resumed, waiting for another pull, started again.
    """

    file: str
    done_bytes: int
    total_bytes: int | None
    bytes_per_s: float = 0.0
    eta_s: float | None = None
    note: str = ""


OnProgress = Callable[[Progress], None]


def is_safe_path(path: str) -> bool:
    """Whether every part is a plain name: no absolute path, no ``..``, no hidden file."""
    parts = PurePosixPath(path).parts
    return bool(parts) and all(_SAFE_PART.fullmatch(part) for part in parts)


class FileDigest:
    """Both digests of a file as it is written; ``size_bytes`` has to be known for git's."""

    def __init__(self, size_bytes: int | None = None) -> None:
        self._sha256 = hashlib.sha256()
        self._git = None
        if size_bytes is not None:
            self._git = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        """The next bytes."""
        self._sha256.update(data)
        if self._git is not None:
            self._git.update(data)

    @property
    def sha256(self) -> str:
        """Lower-case hex over everything so far."""
        return self._sha256.hexdigest()

    def actual(self, expected: Digest) -> str:
        """The digest of the expected kind; empty where it could not be computed."""
        if expected.kind == SHA256:
            return self.sha256
        return self._git.hexdigest() if self._git is not None else ""
