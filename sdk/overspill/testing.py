"""Fakes for an app's own tests, at the seams that ship. Shipped code never imports this module.

::

    from overspill import AsyncOverspill
    from overspill.testing import FakeEngine

    async with AsyncOverspill(device=FakeEngine("Paris.")) as ai:
        assert (await ai.chat("Capital of France?")).text == "Paris."

`FakeEngine` stands in for a model, `MemoryTransport` for the road to a node (with `Taps` to cut
and alter what goes over it).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from overspill.engines.base import Engine, EngineHealth
from overspill.errors import ContextOverflow, OverspillError
from overspill.transport.memory import MemoryTransport, Taps
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Finish, FinishReason, Request
from overspill.types.usage import Usage

__all__ = ["FakeEngine", "MemoryTransport", "Taps"]


class FakeEngine(Engine):
    """Answers every request with the same words, or with what a function makes of it.

    One word is one token. ``error`` is raised after ``error_after`` words; ``delay_s`` passes
    before each word. ``requests`` keeps what was asked; ``cancelled`` counts streams that were
    left before their end.
    """

    def __init__(
        self,
        answer: str | Callable[[Request], str] = "A fake answer.",
        *,
        name: str = "fake",
        context: int = 4096,
        tools: bool = True,
        delay_s: float = 0.0,
        error: OverspillError | None = None,
        error_after: int = 0,
        start_error: OverspillError | None = None,
    ) -> None:
        self._answer = answer
        self._card = ModelCard(name=name, context=context, runtime="fake", tools=tools)
        self._delay_s = delay_s
        self.error = error
        self._error_after = error_after
        self._start_error = start_error
        self.requests: list[Request] = []
        self.cancelled = 0
        self.closed = False

    @property
    def card(self) -> ModelCard:
        """The fake's card."""
        return self._card

    async def start(self) -> None:
        """Raise ``start_error``, if there is one."""
        if self._start_error is not None:
            raise self._start_error

    async def aclose(self) -> None:
        """Note that the engine was closed."""
        self.closed = True

    async def health(self) -> EngineHealth:
        """Fine until closed."""
        return EngineHealth(ok=not self.closed)

    async def count_prompt_tokens(self, request: Request) -> int:
        """Words of all turns."""
        return sum(len(message.content.split()) for message in request.messages)

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        self.requests.append(request)
        prompt = await self.count_prompt_tokens(request)
        if prompt + (request.max_tokens or 1) > self._card.context:
            raise ContextOverflow(prompt, request.max_tokens or 1, self._card.context, "fake")
        answer = self._answer(request) if callable(self._answer) else self._answer
        words = answer.split(" ")
        kept = words[: request.max_tokens]
        try:
            for index, word in enumerate(kept):
                if self.error is not None and index == self._error_after:
                    raise self.error
                await asyncio.sleep(self._delay_s)
                yield Chunk(text=word if index == 0 else f" {word}", token_ids=(index,))
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise
        reason = FinishReason.STOP if len(kept) == len(words) else FinishReason.LENGTH
        yield Chunk(finish=Finish(reason, Usage(prompt, len(kept)), self._card.name))
