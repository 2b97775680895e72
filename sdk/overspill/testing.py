"""Fakes for an app's own tests, at the seams that ship. Shipped code never imports this module.

::

    from overspill import Overspill
    from overspill.testing import FakeEngine, call

    def test_the_capital():
        model = FakeEngine(["Paris.", call("lookup", city="Rome")])
        with Overspill(device=model) as ai:
            assert ai.chat("Capital of France?").text == "Paris."
            assert ai.chat("And of Italy?").tool_calls[0].name == "lookup"
        assert [r.messages[-1].content for r in model.requests][0] == "Capital of France?"

`FakeEngine` stands in for a model, `MemoryTransport` for the road to a node (with `Taps` to cut
and alter what goes over it). The client around them is the real one: routes, budgets, privacy
floors, tool runs and errors are those of production.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from overspill.engines.base import Engine, EngineHealth
from overspill.errors import ContextOverflow, EngineError, OverspillError
from overspill.transport.memory import MemoryTransport, Taps
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Finish, FinishReason, Request, ToolCall
from overspill.types.usage import Usage

__all__ = ["Answer", "FakeEngine", "MemoryTransport", "Taps", "call"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One scripted answer: a text, calls after it, or an error after ``error_after`` words."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    error: OverspillError | None = None
    error_after: int = 0


def call(name: str, /, **arguments: Any) -> ToolCall:
    """A tool call as a model writes it."""
    return ToolCall(id=f"call_{name}", name=name, arguments=json.dumps(arguments))


Script = str | ToolCall | OverspillError | Answer
"""One answer: its text, a call, an error at once, or all of it."""


class FakeEngine(Engine):
    """Answers every request with the same words, with what a function makes of it, or by a script.

    A script is a list with an item for each request; one request too many is an ``EngineError``.
    One word is one token. ``error`` is raised after ``error_after`` words; ``delay_s`` passes
    before each word. ``requests`` keeps what was asked; ``cancelled`` counts streams that were
    left before their end.
    """

    def __init__(
        self,
        answer: str | Callable[[Request], Script] | Sequence[Script] = "A fake answer.",
        *,
        name: str = "fake",
        context: int = 4096,
        tools: bool = True,
        json_schema: bool = False,
        delay_s: float = 0.0,
        error: OverspillError | None = None,
        error_after: int = 0,
        start_error: OverspillError | None = None,
    ) -> None:
        self._answer = answer
        self._card = ModelCard(
            name=name, context=context, runtime="fake", tools=tools, json_schema=json_schema
        )
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

    def _script(self, request: Request) -> Answer:
        """What this request is answered with."""
        found: Script
        if isinstance(self._answer, str):
            found = self._answer
        elif callable(self._answer):
            found = self._answer(request)
        elif len(self.requests) > len(self._answer):
            raise EngineError(f"The script of {self._card.name} has {len(self._answer)} answers.")
        else:
            found = self._answer[len(self.requests) - 1]
        if isinstance(found, str):
            return Answer(found, error=self.error, error_after=self._error_after)
        if isinstance(found, ToolCall):
            return Answer(calls=(found,))
        return Answer(error=found) if isinstance(found, OverspillError) else found

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        self.requests.append(request)
        prompt = await self.count_prompt_tokens(request)
        if prompt + (request.max_tokens or 1) > self._card.context:
            raise ContextOverflow(prompt, request.max_tokens or 1, self._card.context, "fake")
        answer = self._script(request)
        words = answer.text.split(" ") if answer.text else []
        kept = words[: request.max_tokens]
        try:
            for index, word in enumerate(kept):
                if answer.error is not None and index == answer.error_after:
                    raise answer.error
                await asyncio.sleep(self._delay_s)
                yield Chunk(text=word if index == 0 else f" {word}", token_ids=(index,))
            if answer.error is not None and answer.error_after >= len(kept):
                raise answer.error
            if answer.calls:
                yield Chunk(tool_calls=answer.calls)
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise
        reason = FinishReason.STOP if len(kept) == len(words) else FinishReason.LENGTH
        reason = FinishReason.TOOL_CALLS if answer.calls else reason
        yield Chunk(finish=Finish(reason, Usage(prompt, len(kept)), self._card.name))
