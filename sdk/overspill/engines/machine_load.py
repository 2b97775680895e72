"""What else keeps this machine's cores busy, between two moments a fraction of a second apart."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from overspill.engines.backend import Backend
from overspill.engines.thread_choice import ThreadChoice, ThreadTrials

SAMPLE_S = 0.25
STALE_S = 10.0
"""What was seen longer ago, in short times of work, says nothing about now."""
_STAT = Path("/proc/stat")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_IDLE_FIELDS = (3, 4)
_COUNTED_FIELDS = 8
"""user nice system idle iowait irq softirq steal; guest time is in user time already."""


def busy_ticks(stat: str, cpus: Collection[int]) -> int:
    """Ticks that these CPUs were not idle since the start, from the text of ``/proc/stat``."""
    busy = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cpus:
            busy += sum(
                int(field)
                for n, field in enumerate(fields[:_COUNTED_FIELDS])
                if n not in _IDLE_FIELDS
            )
    return busy


def allowed_cpus() -> int:
    """CPUs that this process may be put on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_cpus() -> int:
    """CPUs that this process may use: by its affinity, and by the quota of its container."""
    cpus = allowed_cpus()
    try:
        return min(cpus, quota_cpus(_CPU_MAX.read_text()) or cpus)
    except OSError:
        return cpus


def quota_cpus(cpu_max: str) -> int | None:
    """Whole CPUs of a cgroup's quota, from the text of ``cpu.max`` (cgroup v2); None without one.

    At least one. Threads beyond the quota would spin it away and then all stand still.
    """
    quota, _, period = cpu_max.strip().partition(" ")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return max(1, int(quota) // int(period))


def read_busy_s() -> float | None:
    """CPU seconds that the CPUs of this process were busy; None where nothing says so.

    Takes some 30 microseconds on Linux; other systems have no such file.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    try:
        stat = _STAT.read_text()
    except OSError:
        return None
    return busy_ticks(stat, os.sched_getaffinity(0)) / os.sysconf("SC_CLK_TCK")


class LoadMeter:
    """Cores that others keep busy while this process works: what all took, less what it took.

    What they do while it rests says little: an app that waits for an answer was busy before.
    """

    def __init__(
        self,
        read_all_s: Callable[[], float | None] = read_busy_s,
        read_own_s: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_all_s = read_all_s
        self._read_own_s = read_own_s
        self._clock = clock
        self._rests = False
        self._last = self._read()
        self._since_s = self._last[0]
        self._seen_s = 0.0
        self._others_s: float | None = 0.0

    @property
    def works(self) -> bool:
        """Whether this system says what it does."""
        return self._last[1] is not None

    def rest(self) -> None:
        """There is nothing to do from now on."""
        if not self._rests:
            self._add()
            self._rests = True

    def resume(self) -> None:
        """There is something to do again."""
        if self._rests:
            self._rests = False
            self._last = self._read()
            if self._last[0] - self._since_s > STALE_S:
                self._forget()

    def sample(self) -> float | None:
        """Cores busy with other work since the last sample; None when it is too early for one."""
        self.resume()
        if self._seen_s + self._clock() - self._last[0] < SAMPLE_S:
            return None
        self._add()
        busy = None if self._others_s is None else max(0.0, self._others_s) / self._seen_s
        self._forget()
        return busy

    def _read(self) -> tuple[float, float | None, float]:
        return self._clock(), self._read_all_s(), self._read_own_s()

    def _add(self) -> None:
        then_s, all_then_s, own_then_s = self._last
        self._last = now_s, all_s, own_s = self._read()
        self._seen_s += now_s - then_s
        if all_s is None or all_then_s is None or self._others_s is None:
            self._others_s = None
        else:
            self._others_s += (all_s - all_then_s) - (own_s - own_then_s)

    def _forget(self) -> None:
        self._since_s = self._last[0]
        self._seen_s, self._others_s = 0.0, 0.0


class ThreadControl:
    """Changes a backend's threads between steps: by load where it is known, else by trial.

    ``cores`` are those that this process shares with others; None asks the system.
    """

    def __init__(self, backend: Backend, meter: LoadMeter, *, cores: int | None = None) -> None:
        cores = allowed_cpus() if cores is None else cores
        most = backend.abilities.most_threads
        self._backend = backend
        self._meter = meter
        self._by_load = ThreadChoice(most, cores) if meter.works else None
        self._by_trial = None if meter.works else ThreadTrials(most)
        self.threads = most

    def rest(self) -> None:
        """There is nothing to do from now on."""
        if self._by_load is not None:
            self._meter.rest()

    def resume(self) -> None:
        """There is something to do again."""
        if self._by_load is not None:
            self._meter.resume()

    def after_step(self, rows: int, prompt_tokens: int, took_s: float) -> bool:
        """Whether the number of threads changed."""
        threads = self.threads
        if self._by_load is not None:
            if (busy := self._meter.sample()) is None:
                return False
            threads = self._by_load.note_load(busy)
        elif self._by_trial is not None and prompt_tokens == 0:
            threads = self._by_trial.note_step(rows, took_s)
        if threads == self.threads:
            return False
        self._backend.set_threads(threads)
        self.threads = threads
        return True
