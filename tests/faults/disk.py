"""A disk of its own, so small that it can be filled: a tmpfs, which needs root on Linux."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MISSING = "a full disk needs root on Linux, to mount a tmpfs"


def is_possible() -> bool:
    """Whether such a disk can be asked for here; a container may refuse it all the same."""
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None


@dataclass
class SmallDisk:
    """A mounted disk; ``fill`` leaves not a page free, ``free`` takes that back."""

    folder: Path

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self) -> None:
        """Take all that is left."""
        with self._ballast.open("ab", buffering=0) as out:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while out.write(bytes(size)):
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        """Give it back."""
        self._ballast.unlink(missing_ok=True)

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free


@contextmanager
def small_disk(folder: Path, size_bytes: int = 8 << 20) -> Iterator[SmallDisk]:
    """Mount one at ``folder``. Raises ``OSError`` where the system refuses it."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "tmpfs", str(folder)]
    mounted = subprocess.run(words, check=False, capture_output=True, text=True)
    if mounted.returncode:
        raise OSError(mounted.stderr.strip())
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
