"""The log of an evaluation: one JSON line a prompt, that survives the end of its process.

A line is written whole, by one append to the file, once its prompt has been answered. So after
a kill the file holds whole lines and at most one that was cut (when the disk was full, or
the machine went down): ``resume`` cuts that one off and asks its prompt again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from overspill.errors import UsageError

Line = Mapping[str, Any]


class RunLog:
    """Lines by prompt id, appended to ``path``."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Open the file; without ``resume`` there must be none yet.

        Raises :class:`~overspill.errors.UsageError` where it cannot be written or is no such log,
        and while another process writes to it.
        """
        self.path = path
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(self._file, path)
            self.lines = self._begin(resume)
        except BaseException:
            self.close()
            raise

    @property
    def written(self) -> frozenset[str]:
        """Ids of the prompts that have a line."""
        return frozenset(str(line["id"]) for line in self.lines)

    def append(self, line: Line) -> None:
        """Write one line, whole. Raises ``UsageError`` where the disk is full."""
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        with _told(self.path):
            if os.write(self._file, data) != len(data):
                raise UsageError(f"{self.path} took a part of a line only: the disk is full.")
        self.lines.append(line)

    def close(self) -> None:
        """Close the file and let others write to it. May be called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self, resume: bool) -> list[Line]:
        """The whole lines that are there; what follows them is cut off."""
        with _told(self.path):
            data = self.path.read_bytes()
        if data and not resume:
            raise UsageError(
                f"{self.path} exists.", mend="Add --resume to go on, or name another file."
            )
        whole = data.rfind(b"\n") + 1
        lines = _parse(self.path, data[:whole])
        with _told(self.path):
            os.ftruncate(self._file, whole)
        return lines


def read_log(path: Path) -> list[Line]:
    """The whole lines of a log. Raises ``UsageError`` for what is none."""
    with _told(path):
        data = path.read_bytes()
    return _parse(path, data[: data.rfind(b"\n") + 1])


def _parse(path: Path, data: bytes) -> list[Line]:
    found: dict[str, Line] = {}
    for number, text in enumerate(data.decode("utf-8", "replace").split("\n")[:-1], 1):
        try:
            line = json.loads(text)
            key = str(line["id"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UsageError(
                f"{path}: line {number} is none of an evaluation's.", mend="Name another file."
            ) from None
        if key in found:
            raise UsageError(f"{path}: line {number} has the id of another line, '{key}'.")
        found[key] = line
    return list(found.values())


def _lock(file: int, path: Path) -> None:
    """Hold the file alone; the system lets go of it when this process ends, however it ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError(
            f"Another process writes to {path}.", mend="Wait until it ends, or name another file."
        ) from None


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """``OSError`` as one line."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be used: {error.strerror}.", mend="Check it.") from error
