"""An engine that is watched: how long until the first token, how many tokens, how it ended."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol

from overspill.engines.around import EngineAround
from overspill.engines.base import Engine
from overspill.errors import OverspillError
from overspill.types.chat import Chunk, Request
from overspill.types.usage import Usage

ABANDONED: Final = "abandoned"
"""The outcome of an answer that nobody wanted any more: cancelled, detached or drained."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One generation, as far as an operator may know it: numbers and words of our own.

    ``outcome`` is a finish reason, an error's code, or ``abandoned``. ``first_token_s`` is None
    where none came; times are seconds from the start, ``began_unix_s`` is when that was.
    """

    model: str
    lane: str
    outcome: str
    began_unix_s: float
    duration_s: float
    first_token_s: float | None
    usage: Usage

    @property
    def per_output_token_s(self) -> float | None:
        """Seconds for each token after the first; None where there were fewer than two."""
        tokens = self.usage.completion_tokens
        if self.first_token_s is None or tokens < 2:
            return None
        return (self.duration_s - self.first_token_s) / (tokens - 1)


class Watcher(Protocol):
    """Is told of each generation's end."""

    def answered(self, answered: Answered) -> None:
        """One generation ended."""


class MeteredEngine(EngineAround):
    """``engine`` itself, whose every generation is told to the watchers under ``model``'s name."""

    def __init__(
        self,
        engine: Engine,
        model: str,
        watchers: tuple[Watcher, ...],
        *,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(engine)
        self._model = model
        self._watchers = watchers
        self._clock = clock
        self._timer = timer

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        began_unix_s, began_s = self._clock(), self._timer()
        first_s: float | None = None
        tokens, usage, outcome = 0, None, ABANDONED
        try:
            async with aclosing(self._engine.generate(request)) as chunks:
                async for chunk in chunks:
                    if first_s is None and chunk.has_content:
                        first_s = self._timer() - began_s
                    tokens += len(chunk.token_ids)
                    if chunk.finish is not None:
                        usage, outcome = chunk.finish.usage, chunk.finish.reason.value
                    yield chunk
        except OverspillError as error:
            outcome = error.code
            raise
        finally:
            answered = Answered(
                self._model,
                request.lane,
                outcome,
                began_unix_s,
                self._timer() - began_s,
                first_s,
                usage or Usage(completion_tokens=tokens),
            )
            for watcher in self._watchers:
                watcher.answered(answered)
