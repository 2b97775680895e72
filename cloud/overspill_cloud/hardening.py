"""What a node turns off for its own process, and what it can only state.

A node on hardware refuses to serve on a machine that is open (:mod:`overspill_cloud.closed`);
development and pinned nodes do here what they can and say the rest at start.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_PR_SET_DUMPABLE = 4
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CAP_IPC_LOCK = 14


def harden_process() -> tuple[str, ...]:
    """Turn off core dumps and, on Linux, attaching by other processes of the same user.

    Returns what is left, one stable word each: ``swap_on``, ``ptrace_open``, ``keys_not_locked``.
    """
    left = []
    if not _memory_locked():
        left.append("keys_not_locked")
    if not _no_core_dumps():
        left.append("core_dumps_on")
    if not _not_dumpable():
        left.append("ptrace_open")
    if _swap_on():
        left.append("swap_on")
    return tuple(sorted(left))


def _no_core_dumps() -> bool:
    if sys.platform == "win32":
        return False
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return True


def _not_dumpable() -> bool:
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)


def _memory_locked() -> bool:
    """Keeps every page of this process that is ever touched in memory, and its keys with them.

    Only where no limit counts: under one, a later allocation would fail instead.
    """
    if sys.platform != "linux":
        return False
    import resource

    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    if not (unlimited or _may_lock()):
        return False
    flags = _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT
    return bool(ctypes.CDLL(None).mlockall(flags) == 0)


def _may_lock() -> bool:
    """Whether this process has CAP_IPC_LOCK."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    found = [line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")]
    return bool(found and int(found[0], 16) >> _CAP_IPC_LOCK & 1)


def _swap_on() -> bool:
    """Whether memory may reach a disk; unknown counts as yes."""
    try:
        return len(Path("/proc/swaps").read_text().splitlines()) > 1
    except OSError:
        return True
