"""The addresses of a fleet's nodes, in a file that whoever runs them keeps."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


class AddressFile:
    """One address a line. Without a path there is no fleet, and nothing to read."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._addresses: tuple[str, ...] = ()

    def read(self) -> tuple[str, ...]:
        """What the file says now; the last that it said where it cannot be read."""
        if self._path is None:
            return ()
        with suppress(OSError, UnicodeDecodeError):
            found = self._path.stat()
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
            if stamp != self._stamp:
                lines = self._path.read_text(encoding="ascii").split()
                self._addresses, self._stamp = tuple(lines), stamp
        return self._addresses


def write_addresses(path: Path, addresses: Iterable[str]) -> None:
    """Replace the file whole: no reader sees half of it."""
    _replace(path, "".join(f"{address}\n" for address in addresses), mode=0o600)


def write_targets(path: Path, nodes: Iterable[Mapping[str, Any]]) -> None:
    """Where the nodes show their figures, as Prometheus reads it (``file_sd_configs``). ``nodes``
    are what they printed when they were ready. Who scrapes is seldom who serves: all may read it.
    """
    groups = [{"targets": [node["metrics"]], "labels": {"node": node["listen"]}} for node in nodes]
    _replace(path, json.dumps(groups, indent=2) + "\n", mode=0o644)


def _replace(path: Path, text: str, *, mode: int) -> None:
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as out:
            out.write(text)
        Path(fresh).chmod(mode)
        os.replace(fresh, path)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise
