"""A backend that is looked at: which sequences ran in which step, and by which adapter.

It can also be made to answer what a benchmark needs. Random weights copy nothing; so the logits
of a forced answer are lifted at its next token, and everything else - drafts, their check, the
scheduler - works as with a model that would have said it by itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from overspill.engines.options import EngineOptions
from overspill.engines.registry import RUNTIMES, name_of
from overspill.engines.scheduled import ScheduledEngine
from overspill.errors import EngineError

if TYPE_CHECKING:
    from overspill.engines.backend import Backend, BatchRow, Logits

_LIFTED = 1e9
"""Above any logit of a model."""


@dataclass(frozen=True, slots=True)
class Step:
    """One run of the backend, with the tokens that each sequence had in it.

    Times are seconds of ``time.perf_counter``.
    """

    started_s: float
    ended_s: float
    adapter: str | None
    rows: tuple[BatchRow, ...]

    @property
    def sequences(self) -> frozenset[int]:
        """Those that had tokens in it."""
        return frozenset(row.sequence for row in self.rows)


@dataclass(frozen=True, slots=True)
class ForcedAnswer:
    """The tokens of an answer to a prompt of so many tokens, for every sequence that runs."""

    prompt_tokens: int
    tokens: Sequence[int]


class WatchedBackend:
    """Notes each ``run`` and hands it on, as it does everything else of a backend.

    ``steps`` grows on the scheduler's thread; whoever looks may clear it between requests.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._adapter: str | None = None
        self.steps: list[Step] = []
        self.forced: ForcedAnswer | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def use_adapter(self, name: str | None) -> None:
        """As the backend does."""
        self._adapter = name
        self._backend.use_adapter(name)

    def run(self, rows: Sequence[BatchRow]) -> Logits:
        """As the backend does; with a forced answer, its tokens have the largest logits."""
        started_s = time.perf_counter()
        try:
            logits = self._backend.run(rows)
        finally:
            # An interrupted run is a step too.
            self.steps.append(Step(started_s, time.perf_counter(), self._adapter, tuple(rows)))
        if self.forced is not None:
            _force(self.forced, rows, logits)
        return logits


def _force(answer: ForcedAnswer, rows: Sequence[BatchRow], logits: Logits) -> None:
    output = 0
    for row in rows:
        if not row.wants_logits:
            continue
        end = row.position + len(row.tokens)
        for position in range(end - row.outputs + 1, end + 1):
            index = position - answer.prompt_tokens
            if 0 <= index < len(answer.tokens):
                logits[output, answer.tokens[index]] = _LIFTED
            output += 1


def watched_engine(model: Path, options: EngineOptions) -> tuple[ScheduledEngine, _Watch]:
    """An engine in this process on llama.cpp, and where to find its backend once it has started."""
    watch = _Watch()
    opener = RUNTIMES["llama.cpp"][0]
    name = name_of(str(model))

    def open_backend() -> Backend:
        watch.backend = WatchedBackend(opener(model, name, options))
        return cast("Backend", watch.backend)

    return ScheduledEngine(open_backend, name=name, runtime="llama.cpp", options=options), watch


class _Watch:
    """Holds the backend, which the scheduler's thread opens."""

    backend: WatchedBackend


def longest_wait(steps: Sequence[Step]) -> int:
    """The most steps in a row that passed a sequence over between two that it took part in."""
    seen: dict[int, int] = {}
    longest = 0
    for number, step in enumerate(steps):
        for sequence in step.sequences:
            longest = max(longest, number - seen.get(sequence, number - 1) - 1)
            seen[sequence] = number
    return longest


def slot_of(prompt: Sequence[int], steps: Sequence[Step]) -> int | None:
    """The sequence in which these steps computed a prompt; None where they computed none of it.

    Of sequences that were given some of its tokens by chance, that with most of them counts.
    """
    given: Counter[int] = Counter()
    for row in (row for step in steps for row in step.rows):
        if list(row.tokens) == prompt[row.position : row.position + len(row.tokens)]:
            given[row.sequence] += len(row.tokens)
    return max(given, key=given.__getitem__, default=None)


def outside_share(steps: Sequence[Step]) -> float:
    """Of the time from the first step's beginning to the last one's end, what lay between steps.

    Raises :class:`EngineError` for fewer than two steps.
    """
    if len(steps) < 2:
        raise EngineError("There were no two steps to look between.")
    whole_s = steps[-1].ended_s - steps[0].started_s
    return 1.0 - sum(step.ended_s - step.started_s for step in steps) / whole_s
