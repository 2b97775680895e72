"""Fakes at this package's seams, for tests of nodes on machines without the hardware. Shipped code
never imports this module.

`FakeTsm` behaves as configfs-tsm does (drivers/virt/coco/tsm.c, fs/configfs/file.c), `FakeRegister`
as one of the kernel's RTMR files. What signs reports is a function that the test gives.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

_READ_ONLY = ("outblob", "auxblob", "provider", "generation", "privlevel_floor")
_WRITE_ONLY = ("inblob", "privlevel")
_MAX_INBLOB_BYTES = 64
_MAX_PRIVLEVEL = 3
_GENERATIONS = 1 << 32


@dataclass(slots=True)
class _Folder:
    """One report's state: the kernel's ``struct tsm_report_state``."""

    inblob: bytes = b""
    privlevel: int = 0
    write_generation: int = 0
    read_generation: int = 0
    cached: tuple[bytes, bytes] | None = None


@dataclass
class FakeTsm:
    """The kernel's report interface without a kernel: files by folder and attribute.

    ``report(inblob, privlevel)`` gives ``(outblob, auxblob)``. ``provider`` None is a machine on
    which no module is loaded; ``floor`` None a provider without privilege levels.
    ``before(verb, attribute)`` runs before each access: a test raises ``OSError`` there, or writes
    as another process would.
    """

    report: Callable[[bytes, int], tuple[bytes, bytes]]
    provider: str | None = "sev_guest"
    floor: int | None = 0
    has_auxblob: bool = True
    before: Callable[[str, str], None] = lambda verb, attribute: None
    folders: dict[str, _Folder] = field(default_factory=dict)
    asked: list[tuple[bytes, int]] = field(default_factory=list)

    def make(self, name: str) -> None:
        """mkdir: ENXIO without a provider."""
        self.before("make", "")
        if self.provider is None:
            raise _error(errno.ENXIO)
        if name in self.folders:
            raise _error(errno.EEXIST)
        self.folders[name] = _Folder()

    def remove(self, name: str) -> None:
        """rmdir."""
        if self.folders.pop(name, None) is None:
            raise _error(errno.ENOENT)

    def has(self, name: str, attribute: str) -> bool:
        """Which attributes there are is the provider's choice, by folder for all."""
        if name not in self.folders:
            return False
        if attribute in ("privlevel", "privlevel_floor"):
            return self.floor is not None
        return attribute != "auxblob" or self.has_auxblob

    def read(self, name: str, attribute: str) -> bytes:
        """A read of a blob makes the report, unless the last write was answered already."""
        self.before("read", attribute)
        folder = self._folder(name, attribute)
        if attribute in _WRITE_ONLY:
            raise _error(errno.EACCES)
        if attribute == "provider":
            return f"{self.provider}\n".encode()
        if attribute == "generation":
            return f"{folder.write_generation}\n".encode()
        if attribute == "privlevel_floor":
            return f"{self.floor}\n".encode()
        outblob, auxblob = self._make_report(folder)
        return outblob if attribute == "outblob" else auxblob

    def write(self, name: str, attribute: str, data: bytes) -> None:
        """A write moves the generation on. What ``inblob`` is refused for is said to nobody: the
        file is flushed when it is closed."""
        self.before("write", attribute)
        folder = self._folder(name, attribute)
        if attribute in _READ_ONLY:
            raise _error(errno.EACCES)
        if attribute == "privlevel":
            self._write_privlevel(folder, int(data))
        elif 0 < len(data) <= _MAX_INBLOB_BYTES and self._advance(folder):
            folder.inblob = data

    def _write_privlevel(self, folder: _Folder, level: int) -> None:
        if self.floor is None or not self.floor <= level <= _MAX_PRIVLEVEL:
            raise _error(errno.EINVAL)
        if not self._advance(folder):
            raise _error(errno.EBUSY)
        folder.privlevel = level

    def _advance(self, folder: _Folder) -> bool:
        """False (EBUSY) when the numbers would meet without a read between them."""
        if folder.write_generation == (folder.read_generation - 1) % _GENERATIONS:
            return False
        folder.write_generation = (folder.write_generation + 1) % _GENERATIONS
        return True

    def _make_report(self, folder: _Folder) -> tuple[bytes, bytes]:
        if folder.cached is not None and folder.read_generation == folder.write_generation:
            return folder.cached
        if not folder.inblob:
            raise _error(errno.EINVAL)
        self.asked.append((folder.inblob, folder.privlevel))
        folder.cached = self.report(folder.inblob, folder.privlevel)
        folder.read_generation = folder.write_generation
        return folder.cached

    def _folder(self, name: str, attribute: str) -> _Folder:
        if not self.has(name, attribute):
            raise _error(errno.ENOENT)
        return self.folders[name]


@dataclass
class FakeRegister:
    """A TDX measurement register. ``broken`` is raised by every access."""

    value: bytes = bytes(48)
    broken: OSError | None = None

    def read(self) -> bytes:
        """The register's 48 bytes."""
        self._check()
        return self.value

    def extend(self, digest: bytes) -> None:
        """SHA-384 over the value and ``digest``; EINVAL for another length than 48."""
        self._check()
        if len(digest) != len(self.value):
            raise _error(errno.EINVAL)
        self.value = hashlib.sha384(self.value + digest).digest()

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
