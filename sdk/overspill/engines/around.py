"""What stands in front of an engine and changes one thing: the rest is the engine's own."""

from __future__ import annotations

from overspill.engines.base import Engine, EngineHealth
from overspill.types.card import ModelCard
from overspill.types.chat import Request


class EngineAround(Engine):
    """``engine``, opened and closed with this one; what comes in between stands in ``_generate``.

    Whoever adds to :class:`~overspill.engines.base.Engine` what an engine may say of itself passes
    it on here: a gate that forgot to would hide it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def card(self) -> ModelCard:
        """The engine's own."""
        return self._engine.card

    async def start(self) -> None:
        """Start the engine."""
        await self._engine.start()

    async def aclose(self) -> None:
        """Close the engine."""
        await self._engine.aclose()

    async def health(self) -> EngineHealth:
        """The engine's own."""
        return await self._engine.health()

    async def count_prompt_tokens(self, request: Request) -> int | None:
        """As the engine counts."""
        return await self._engine.count_prompt_tokens(request)

    def queue_position(self, request_id: str) -> int | None:
        """The engine's own queue."""
        return self._engine.queue_position(request_id)

    @property
    def loading(self) -> float | None:
        """The engine's own."""
        return self._engine.loading
