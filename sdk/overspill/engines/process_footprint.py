"""What memory a process holds now, as its system charges it for that.

On macOS that is the physical footprint, which Activity Monitor shows: the pages that count against
the process, compressed ones and the GPU's among them, and not those of files that it only maps;
RSS there misses the first and counts the last. Elsewhere it is RSS. Sources: Darwin's
``proc_pid_rusage`` and ``struct rusage_info_v4`` in ``sys/resource.h``; proc(5) on ``VmRSS``.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from overspill.errors import MissingExtra

Rusage = Callable[[int, int, Any], int]
"""``proc_pid_rusage(pid, flavor, buffer)``: 0, or -1 with ``errno`` set."""

_PROC = Path("/proc")
_LIBPROC = "/usr/lib/libproc.dylib"
_RUSAGE_INFO_V4 = 4
_USAGE_BYTES = 16 + 35 * 8
"""A UUID, and 35 fields of 64 bits."""
_PHYS_FOOTPRINT_AT = 16 + 7 * 8
"""``ri_phys_footprint`` is the eighth of them, behind ``ri_resident_size``."""


def process_footprint(pid: int | None = None) -> int:
    """Bytes that a process holds, by default this one.

    Raises :class:`ProcessLookupError` where it has ended, :class:`PermissionError` where it is
    nobody's to look at, and :class:`MissingExtra` where only psutil can tell and is not there.
    """
    pid = os.getpid() if pid is None else pid
    if sys.platform == "darwin":
        return _physical_footprint(pid, _proc_pid_rusage())
    if (_PROC / "self" / "status").exists():
        return _resident(pid, _PROC)
    return _resident_by_psutil(pid)


def parse_rusage_v4(usage: bytes) -> int:
    """The physical footprint, in bytes, in a ``struct rusage_info_v4``."""
    (footprint,) = struct.unpack_from("<Q", usage, _PHYS_FOOTPRINT_AT)
    return int(footprint)


def _physical_footprint(pid: int, rusage: Rusage) -> int:
    usage = ctypes.create_string_buffer(_USAGE_BYTES)
    if rusage(pid, _RUSAGE_INFO_V4, usage) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(pid))
    return parse_rusage_v4(usage.raw)


def _proc_pid_rusage() -> Rusage:
    function = ctypes.CDLL(_LIBPROC, use_errno=True).proc_pid_rusage
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
    function.restype = ctypes.c_int
    return function


def _resident(pid: int, proc: Path) -> int:
    """RSS; a process that has ended and was not waited for has none."""
    try:
        status = (proc / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise ProcessLookupError(f"There is no process {pid}.") from None
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _resident_by_psutil(pid: int) -> int:
    try:
        import psutil
    except ImportError:
        raise MissingExtra("Measuring memory on this system", "bench") from None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        raise ProcessLookupError(f"There is no process {pid}.") from None
    except psutil.AccessDenied:
        raise PermissionError(f"Process {pid} is not to be looked at.") from None
