"""A hedge: the second route is started where the first is late, and whoever gives text answers.

The first route runs as it always does. Only where it has given nothing for ``after_s`` seconds is
the second started, by the same decision that allowed both. The loser is cancelled before the
winner's first piece is passed on, so an app never sees two answers; what it took is charged.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass

from overspill.errors import OverspillError
from overspill.types.reply import ReplyChunk

Stream = AsyncGenerator[ReplyChunk]
_REMEMBERED = 100


class HedgeShare:
    """Which part of the latest 100 requests was sent to two routes."""

    def __init__(self) -> None:
        self._latest: deque[bool] = deque(maxlen=_REMEMBERED)

    @property
    def share(self) -> float:
        """What it would be with one more: a cap holds from the first request on, 0 to 1."""
        return (sum(self._latest) + 1) / _REMEMBERED

    def note(self, *, hedged: bool) -> None:
        """Count one request."""
        self._latest.append(hedged)


@dataclass(slots=True)
class _Runner:
    """A stream whose first piece is waited for in a task of its own."""

    stream: Stream
    first: asyncio.Task[ReplyChunk]

    @classmethod
    def start(cls, stream: Stream) -> _Runner:
        return cls(stream, asyncio.ensure_future(anext(stream)))

    async def stop(self) -> None:
        """Cancel the work, and wait until it has ended."""
        self.first.cancel()
        with suppress(asyncio.CancelledError, OverspillError, StopAsyncIteration):
            await self.first
        await self.stream.aclose()


async def race(
    first: Stream,
    second: Callable[[], Stream],
    after_s: float,
    on_error: Callable[[OverspillError], None],
) -> Stream:
    """The pieces of ``first``, or of ``second`` where that is started and is sooner.

    An error of one leaves the other running and is told to ``on_error``; where both fail the
    first one's is raised.
    """
    runners = [_Runner.start(first)]
    try:
        await asyncio.wait([runners[0].first], timeout=after_s)
        if not runners[0].first.done():
            runners.append(_Runner.start(second()))
        winner = await _winner(runners, on_error)
        for loser in runners:
            if loser is not winner:
                await loser.stop()
        runners = [winner]
        yield winner.first.result()
        async for chunk in winner.stream:
            yield chunk
    finally:
        for runner in runners:
            await runner.stop()


async def _winner(runners: list[_Runner], on_error: Callable[[OverspillError], None]) -> _Runner:
    """The runner that gives its first piece soonest; one that fails is out of the race."""
    racing = {runner.first: runner for runner in runners}
    while racing:
        done, _ = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
        for task in (runner.first for runner in runners if runner.first in done):
            error = task.exception()
            if error is None:
                return racing[task]
            del racing[task]
            if isinstance(error, OverspillError) and racing:
                on_error(error)
    return runners[0]  # all failed: its error is the answer
