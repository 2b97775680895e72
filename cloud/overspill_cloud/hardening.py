"""What a node turns off for its own process, and what it can only state.

A production node would refuse to serve with any of these on; development and pinned nodes do what
they can and say the rest at start.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_PR_SET_DUMPABLE = 4


def harden_process() -> tuple[str, ...]:
    """Turn off core dumps and, on Linux, attaching by other processes of the same user.

    Returns what is left, one stable word each: ``swap_on``, ``ptrace_open``, ``keys_not_locked``.
    """
    left = ["keys_not_locked"]
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


def _swap_on() -> bool:
    """Whether memory may reach a disk; unknown counts as yes."""
    try:
        return len(Path("/proc/swaps").read_text().splitlines()) > 1
    except OSError:
        return True
