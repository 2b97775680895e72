"""How much memory a process could still take now, on Linux, macOS and Windows.

Sources: proc(5) on ``MemAvailable``; the kernel's cgroup v1 ``memory.txt`` and ``cgroup-v2.rst``;
Darwin's ``host_statistics64`` by way of ``vm_stat``; Windows' ``GlobalMemoryStatusEx``. A limit of
a container counts, whichever of its parents set it. On macOS the free pages alone would say
nothing: what is inactive, speculative or purgeable is given back on demand.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from overspill.spawn import spawn_options

_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
_NO_LIMIT = 1 << 60
"""A v1 limit above this means none: the kernel writes the largest multiple of a page."""
_VM_STAT_TIMEOUT_S = 5.0
_GIVEN_BACK = ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable")


def available_memory() -> int | None:
    """Bytes that this process could still take, within its cgroup too; None where unknown."""
    if sys.platform == "darwin":
        return _macos_available()
    if sys.platform == "win32":
        return _windows_available()
    free = _meminfo_available(_PROC)
    return min((*_cgroup_rooms(_PROC, _CGROUPS), *(() if free is None else (free,))), default=None)


# --- Linux --------------------------------------------------------------------------------------


def _meminfo_available(proc: Path) -> int | None:
    try:
        for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        # No /proc in a jail: then nobody knows.
        return None
    return None


def _cgroup_rooms(proc: Path, root: Path) -> Iterator[int]:
    """What each limit above this process leaves, in either version of cgroups."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            files = ("memory.max", "memory.current", "inactive_file")
            yield from _rooms(root, path, files)
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _rooms(root / "memory", path, files)


def _rooms(root: Path, path: str, files: tuple[str, str, str]) -> Iterator[int]:
    """The group's own folder and its parents' up to the mount; inside a container the mount is
    the group itself, and the path means nothing."""
    folder = root / path.strip("/")
    while True:
        room = _room(folder, *files)
        if room is not None:
            yield room
        if folder == root or root not in folder.parents:
            return
        folder = folder.parent


def _room(folder: Path, limit_file: str, usage_file: str, cache_key: str) -> int | None:
    try:
        limit = (folder / limit_file).read_text(encoding="ascii").strip()
        used = int((folder / usage_file).read_text(encoding="ascii"))
        stat = (folder / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    if not limit.isdigit() or int(limit) > _NO_LIMIT:
        return None
    pages = dict(line.split(None, 1) for line in stat.splitlines())
    # Cached file pages are given back when memory runs short.
    return max(0, int(limit) - used + int(pages.get(cache_key, 0)))


# --- macOS and Windows --------------------------------------------------------------------------


def _macos_available() -> int | None:
    try:
        said = subprocess.run(
            ["/usr/bin/vm_stat"],
            check=False,
            capture_output=True,
            text=True,
            timeout=_VM_STAT_TIMEOUT_S,
            **spawn_options(),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_vm_stat(said.stdout)


def parse_vm_stat(text: str) -> int | None:
    """Bytes that macOS could hand out, from what ``vm_stat`` prints; None for anything else."""
    size = re.search(r"page size of (\d+) bytes", text)
    pages = dict(re.findall(r"^([^:\n]+):\s+(\d+)\.$", text, re.MULTILINE))
    if size is None or "Pages free" not in pages:
        return None
    return int(size[1]) * sum(int(pages.get(name, 0)) for name in _GIVEN_BACK)


def _windows_available() -> int | None:
    import ctypes

    class MemoryStatus(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load_percent", ctypes.c_uint32),
            ("total_physical", ctypes.c_uint64),
            ("available_physical", ctypes.c_uint64),
            ("total_page_file", ctypes.c_uint64),
            ("available_page_file", ctypes.c_uint64),
            ("total_virtual", ctypes.c_uint64),
            ("available_virtual", ctypes.c_uint64),
            ("available_extended", ctypes.c_uint64),
        )

    kernel = getattr(ctypes, "windll", None)
    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    if kernel is None or not kernel.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    # Commit is promised memory: without a page file it ends before the physical memory does.
    return min(int(status.available_physical), int(status.available_page_file))
