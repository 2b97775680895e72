"""Answers as their callers saw them: when pieces arrived, and what follows from that."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from overspill.errors import EngineError
from overspill.types.chat import Chunk
from overspill.types.reply import ReplyChunk


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """One answer on the caller's clock (seconds of ``time.perf_counter``).

    ``pieces`` are (when, tokens) of each piece with text; ``tokens`` counts the whole answer, by
    whoever made it.
    """

    started_s: float
    pieces: tuple[tuple[float, int], ...]
    ended_s: float
    tokens: int

    @property
    def ttft_s(self) -> float:
        """From the call to the first non-empty text."""
        return self.pieces[0][0] - self.started_s

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first piece per second since it.

        Raises :class:`EngineError` where everything came in one piece.
        """
        first_s, first_tokens = self.pieces[0]
        last_s, _ = self.pieces[-1]
        if last_s <= first_s:
            raise EngineError("The whole answer came in one piece: it has no rate.")
        return (self.tokens - first_tokens) / (last_s - first_s)


def aggregate_tokens_per_s(streams: Sequence[StreamTimes]) -> float:
    """All tokens over the time from the first call to the last end."""
    took_s = max(s.ended_s for s in streams) - min(s.started_s for s in streams)
    return sum(s.tokens for s in streams) / took_s


class StreamClock:
    """Notes one stream's pieces as they come, for whoever looks on; ``times`` sums up."""

    def __init__(self) -> None:
        self.started_s = time.perf_counter()
        self.pieces: list[tuple[float, int]] = []
        self.tokens = 0

    def note(self, tokens: int) -> None:
        """A piece with text has just arrived."""
        self.pieces.append((time.perf_counter(), tokens))
        self.tokens += tokens

    def gaps_s(self, begin_s: float, end_s: float) -> list[float]:
        """Times between neighbouring pieces, of those gaps that ended from begin to end."""
        times = [at for at, _ in self.pieces]
        return [
            later - earlier
            for earlier, later in itertools.pairwise(times)
            if begin_s < later <= end_s
        ]

    def times(self, asked_tokens: int | None = None) -> StreamTimes:
        """The whole stream.

        Raises :class:`EngineError` where nothing came, or not exactly ``asked_tokens``.
        """
        if not self.pieces:
            raise EngineError("The answer had no text.")
        if asked_tokens is not None and self.tokens != asked_tokens:
            raise EngineError(f"{asked_tokens} tokens were asked for, {self.tokens} came.")
        return StreamTimes(self.started_s, tuple(self.pieces), time.perf_counter(), self.tokens)


class Target(Protocol):
    """Something that answers prompts of made words: an engine of ours, a peer's server."""

    async def stream(
        self,
        prompt_tokens: int,
        max_tokens: int,
        *seed: int,
        system_tokens: int = 0,
        clock: StreamClock | None = None,
    ) -> StreamTimes:
        """One greedy answer of exactly ``max_tokens`` tokens, read to its end.

        The prompt has ``prompt_tokens`` tokens; the first ``system_tokens`` of them are always
        the same, the others differ with the seed. ``clock`` lets others see the pieces come.
        """


async def time_stream(
    chunks: AsyncIterator[Chunk] | AsyncIterator[ReplyChunk],
    asked_tokens: int | None = None,
    clock: StreamClock | None = None,
) -> StreamTimes:
    """Read an engine's or a client's stream to its end; without ``clock``, its own starts now."""
    clock = clock or StreamClock()
    async for chunk in chunks:
        if chunk.text:
            clock.note(len(chunk.token_ids))
        else:
            clock.tokens += len(chunk.token_ids)
    return clock.times(asked_tokens)
