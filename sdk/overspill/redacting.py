"""An engine elsewhere, behind a veil: it sees placeholders, its answer comes back with values."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from overspill.engines.base import Engine, EngineHealth
from overspill.routing.policy import RoutingPolicy
from overspill.routing.redaction import Restorer, redact
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Request


class RedactingEngine(Engine):
    """``engine``, asked with what ``policy`` and the request redact replaced by placeholders.

    A receipt is for what was sent: the words with placeholders. Log-probabilities name the tokens
    that were generated. Whoever opened ``engine`` closes it.
    """

    def __init__(self, engine: Engine, policy: RoutingPolicy) -> None:
        self._engine = engine
        self._policy = policy

    @property
    def card(self) -> ModelCard:
        """The card of the engine behind."""
        return self._engine.card

    async def count_prompt_tokens(self, request: Request) -> int | None:
        """Tokens of what would be sent."""
        veil = redact(request, self._policy)
        return await self._engine.count_prompt_tokens(veil.request if veil else request)

    async def health(self) -> EngineHealth:
        """The health of the engine behind."""
        return await self._engine.health()

    def queue_position(self, request_id: str) -> int | None:
        """As the engine behind knows it."""
        return self._engine.queue_position(request_id)

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        veil = redact(request, self._policy)
        restorer = Restorer(veil) if veil else None
        asked = veil.request if veil else request
        async with aclosing(self._engine.generate(asked)) as chunks:
            async for chunk in chunks:
                yield restorer.chunk(chunk) if restorer else chunk
