"""How many CPU threads a step takes, by what else runs on the machine.

A step's threads wait for each other at every layer, spinning: where one of them shares its core
with other work all of them wait for it, and two threads on two busy cores are slower than one.
So a thread is given up for each core that others keep busy. Pure: told what was measured.
"""

from __future__ import annotations

from collections import defaultdict, deque
from statistics import median

SHARED = 0.4
"""Of a core: less than that is taken by others on every machine, and costs no thread."""
CALM_SAMPLES = 3
"""A core must be free for so many samples before a thread goes back to it."""
SLOWER = 1.5
"""So many times the usual a step takes, before fewer threads are tried where load is unknown."""
TRIAL_STEPS = 6
RETRY_STEPS = 200


class ThreadChoice:
    """Between 1 and ``most`` threads, by how many of ``cores`` others keep busy."""

    def __init__(self, most: int, cores: int) -> None:
        self.threads = self._most = most
        self._cores = max(cores, most)
        self._calm = 0

    def note_load(self, others_busy: float) -> int:
        """So many cores were busy with other work; returns the threads to use from now on.

        Gives way at once, since a shared core costs more than an idle one, and comes back slowly.
        Between the two lies a band in which nothing changes.
        """
        free = self._cores - others_busy
        least, most = int(free + SHARED), int(free + 1 - SHARED)
        if self.threads > most:
            self.threads, self._calm = max(1, most), 0
        elif self.threads < min(least, self._most):
            self._calm += 1
            if self._calm >= CALM_SAMPLES:
                self.threads, self._calm = min(least, self._most), 0
        else:
            self._calm = 0
        return self.threads


class ThreadTrials:
    """The same where nobody says what else runs: fewer threads are tried when steps get slow.

    Compares steps with equally many rows only. A trial takes ``TRIAL_STEPS`` steps, and what
    was faster stays; more threads are tried again every ``RETRY_STEPS`` steps.
    """

    def __init__(self, most: int) -> None:
        self.threads = self._most = most
        self._usual_s: dict[int, float] = {}
        self._recent: deque[tuple[int, float]] = deque(maxlen=TRIAL_STEPS)
        self._before: tuple[int, dict[int, float]] | None = None
        self._steps = 0

    def note_step(self, rows: int, took_s: float) -> int:
        """A decoding step took so long; returns the threads to use from now on."""
        self._steps += 1
        self._recent.append((rows, took_s))
        usual_s = self._usual_s.get(rows)
        # A slow drift upwards, so that one lucky step isn't the measure for ever.
        self._usual_s[rows] = took_s if usual_s is None else min(took_s, usual_s * 1.001)
        if len(self._recent) == TRIAL_STEPS:
            if self._before is not None:
                self._judge()
            elif self.threads > 1 and self._is_slow():
                self._try(self.threads - 1)
            elif self.threads < self._most and self._steps >= RETRY_STEPS:
                self._try(self.threads + 1)
        return self.threads

    def _is_slow(self) -> bool:
        return all(took_s > SLOWER * self._usual_s[rows] for rows, took_s in self._recent)

    def _try(self, threads: int) -> None:
        self._before = self.threads, self._medians()
        self.threads = threads
        self._recent.clear()
        self._steps = 0

    def _judge(self) -> None:
        if self._before is None:
            return
        threads, then = self._before
        now = self._medians()
        both = then.keys() & now.keys()
        # With nothing to compare, what was tried has shown nothing.
        if not both or sum(now[rows] for rows in both) >= sum(then[rows] for rows in both):
            self.threads = threads
        self._before = None
        self._recent.clear()
        self._steps = 0

    def _medians(self) -> dict[int, float]:
        by_rows: defaultdict[int, list[float]] = defaultdict(list)
        for rows, took_s in self._recent:
            by_rows[rows].append(took_s)
        return {rows: median(times) for rows, times in by_rows.items()}
