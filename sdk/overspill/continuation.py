"""A request that goes on elsewhere: what came so far, and what is left to ask.

The caller holds every token that it was given. Another engine gets the same request with that text
as the answer's beginning, so that nothing is repeated and nothing is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from overspill.errors import DeadlineExceeded
from overspill.types.chat import Chunk, Request
from overspill.types.reply import ReplyChunk


@dataclass(slots=True)
class Continuation:
    """``clock`` gives seconds. ``changes`` says, in order, where it went and why."""

    original: Request
    clock: Callable[[], float] = time.monotonic
    changes: list[str] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _tokens: int = 0
    _is_plain: bool = True
    _begun_s: float = field(init=False)
    _stalled_s: float | None = None

    def __post_init__(self) -> None:
        self._begun_s = self.clock()

    @property
    def text(self) -> str:
        """All that came so far."""
        return "".join(self._text)

    @property
    def tokens(self) -> int:
        """Tokens that came so far."""
        return self._tokens

    @property
    def is_possible(self) -> bool:
        """Whether another engine could go on: with plain text, and with tokens left to write.

        Half a tool call or half a thought cannot be handed to another engine.
        """
        limit = self.original.max_tokens
        return self._is_plain and (limit is None or self._tokens < limit)

    def stalled_s(self) -> float:
        """A try failed: for how many seconds no piece has come since the first one that did."""
        if self._stalled_s is None:
            self._stalled_s = self.clock()
        return self.clock() - self._stalled_s

    def note(self, chunk: Chunk | ReplyChunk) -> None:
        """A piece of the answer was handed on."""
        self._stalled_s = None
        self._text.append(chunk.text)
        self._tokens += len(chunk.token_ids)
        if chunk.tool_calls or chunk.tool_call_deltas or chunk.reasoning:
            self._is_plain = False

    def request(self) -> Request:
        """What is left to ask, within what is left of the deadline.

        Raises ``DeadlineExceeded`` when nothing is.
        """
        asked, moved = self.original, len(self.changes)
        text, limit = self.text, self.original.max_tokens
        return replace(
            asked,
            attempt=asked.attempt + moved,
            prefix=asked.prefix + text,
            draft="" if text else asked.draft,
            max_tokens=None if limit is None else limit - self._tokens,
            deadline_s=self._left_s(asked.deadline_s),
            first_token_s=None if text else self._left_s(asked.first_token_s),
        )

    def _left_s(self, limit_s: float | None) -> float | None:
        if limit_s is None:
            return None
        left = limit_s - (self.clock() - self._begun_s)
        if left <= 0:
            raise DeadlineExceeded(f"The answer was not complete within {limit_s:g} s.")
        return left
