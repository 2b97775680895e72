"""Facts about the machine, and whether it had other work: numbers mean nothing without them."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

BUSY_LOAD_SHARE = 0.25
"""A load average above this share of the CPUs, before anything is measured, is other work."""
OTHERS_SHARE = 0.05
"""So much of the CPUs' time taken by processes that are not the benchmark's spoils it."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """``cpus`` are those that this process may use; ``memory_bytes`` None where unknown."""

    cpu: str
    cpus: int
    memory_bytes: int | None
    system: str
    python: str


def facts() -> MachineFacts:
    """What this machine is."""
    return MachineFacts(
        cpu=_cpu_name(),
        cpus=usable_cpus(),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
    )


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_average() -> tuple[float, float, float] | None:
    """Over 1, 5 and 15 minutes; None on Windows."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def busy_warning(load: tuple[float, float, float] | None, cpus: int) -> str | None:
    """A warning when something else was running before the first measurement."""
    if load is None or load[0] <= BUSY_LOAD_SHARE * cpus:
        return None
    return (
        f"The machine was busy before the run: a load of {load[0]:.2f} on {cpus} CPUs. "
        "These numbers are not to be relied on; run again when it is quiet."
    )


class OthersWatch:
    """How much of the CPUs' time other processes took since this object was made.

    Linux only: the system's busy time less that of this process and of its ended children.
    """

    def __init__(self) -> None:
        self._busy_s, self._own_s = _busy_s(), _own_s()
        self._started_s = time.monotonic()

    def share(self, cpus: int) -> float | None:
        """From 0 to 1 of all CPUs; ask when the children have ended. None where unknown."""
        busy_s, elapsed_s = _busy_s(), time.monotonic() - self._started_s
        if busy_s is None or self._busy_s is None or elapsed_s <= 0:
            return None
        others_s = (busy_s - self._busy_s) - (_own_s() - self._own_s)
        return min(1.0, max(0.0, others_s / (elapsed_s * cpus)))


def others_warning(share: float | None) -> str | None:
    """A warning when other processes worked during the measurements."""
    if share is None or share <= OTHERS_SHARE:
        return None
    return (
        f"Other processes took {share:.0%} of the CPUs' time during the run. "
        "These numbers are not to be relied on; run again when it is quiet."
    )


def _own_s() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _busy_s() -> float | None:
    """User, nice, system and interrupt time of all processes since boot (``proc_stat(5)``)."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    except (OSError, IndexError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq = (int(word) for word in first[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
