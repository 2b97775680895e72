"""What one stream gave, piece by piece, and whether it may have: every token exactly once."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import aclosing
from dataclasses import dataclass, field

from overspill.engines.base import Engine
from overspill.errors import OverspillError
from overspill.types.chat import Finish, Request

_TICK_S = 0.5


@dataclass
class History:
    """The pieces of one answer with their times (s, monotonic), and how it ended."""

    expected: str
    pieces: list[str] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    begun_s: float = field(default_factory=time.monotonic)
    ended_s: float | None = None
    finish: Finish | None = None
    error: OverspillError | None = None
    moves: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def is_complete(self) -> bool:
        return self.finish is not None and self.text == self.expected

    @property
    def violation(self) -> str:
        """What must never be: a token that is lost, doubled, out of order, or an error that says
        nothing; empty when all is well."""
        if not self.expected.startswith(self.text):
            return f"text differs: {self.text[-40:]!r}"
        if self.finish is not None and self.text != self.expected:
            return f"confirmed, but {len(self.text)} of {len(self.expected)} characters"
        if self.finish is None and self.error is None:
            return "neither an end nor an error"
        if self.error is not None and self.error.partial != self.text:
            return "the error's partial text is not what came"
        return ""

    @property
    def ttft_s(self) -> float:
        return self.times_s[0] - self.begun_s if self.times_s else float("inf")

    @property
    def longest_silence_s(self) -> float:
        """The longest wait: for the first piece, for the next one, or for the end."""
        end = [] if self.ended_s is None else [self.ended_s]
        times = [self.begun_s, *self.times_s, *end]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def __str__(self) -> str:
        """How far it came, and what stopped it."""
        why = self.violation or repr(self.error)
        return f"{len(self.text)} of {len(self.expected)} characters: {why}"


async def record_within(
    seconds: float, engine: Engine, request: Request, expected: str | None = None
) -> History:
    """The same, but a stream that hangs is ended, and has neither an end nor an error.

    Time in which this program was itself stopped (a soak in the background may be) does not count.
    """
    asked = asyncio.create_task(record(engine, request, expected))
    for _ in range(int(seconds / _TICK_S)):
        if (await asyncio.wait({asked}, timeout=_TICK_S))[0]:
            return asked.result()
    asked.cancel()
    await asyncio.wait({asked})
    return History("echo: " + request.messages[-1].content if expected is None else expected)


async def record(engine: Engine, request: Request, expected: str | None = None) -> History:
    """Run one request to its end, whatever that is. ``echo``'s answer is known beforehand."""
    if expected is None:
        expected = "echo: " + request.messages[-1].content
    history = History(expected)
    try:
        async with aclosing(engine.generate(request)) as chunks:
            async for chunk in chunks:
                if chunk.text:
                    history.pieces.append(chunk.text)
                    history.times_s.append(time.monotonic())
                if chunk.finish is not None:
                    history.finish = chunk.finish
    except OverspillError as error:
        history.error = error
    history.ended_s = time.monotonic()
    moves = getattr(engine, "moves", None)
    history.moves = moves(request.id) if moves else ()
    return history
