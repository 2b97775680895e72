"""The gate in front of a provider: a spent grant first, then the request."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from overspill.engines.base import Engine, EngineHealth
from overspill.providers.grants import GrantBook
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Request


class GrantedEngine(Engine):
    """``engine``, which is ``provider``'s, for requests whose grant the ``book`` lets be spent.

    Nothing is sent, and no connection made, for anything else: raises ``ConsentRequired``.
    """

    def __init__(
        self,
        engine: Engine,
        provider: str,
        book: GrantBook,
        *,
        clock: Callable[[], float] = time.time,
        bytes_sent: Callable[[str], int] = lambda request_id: 0,
    ) -> None:
        self.provider = provider
        self._engine = engine
        self._book = book
        self._clock = clock
        self.bytes_sent = bytes_sent
        """What went to the provider for a request's id; 0 for one that it never saw."""

    def signed(self, request: Request) -> Request:
        """The request with the grant that a person just gave, signed for what it says now.

        Raises ``ConsentRequired`` for a grant of something else.
        """
        grant = request.grant
        if grant is None:
            return request
        return replace(request, grant=self._book.sign(grant, request, int(self._clock())))

    @property
    def card(self) -> ModelCard:
        """The provider's card, as it was configured."""
        return self._engine.card

    async def start(self) -> None:
        """Start the engine behind; contacts nobody."""
        await self._engine.start()

    async def aclose(self) -> None:
        """Close the engine behind."""
        await self._engine.aclose()

    async def health(self) -> EngineHealth:
        """As the engine behind knows it; contacts nobody."""
        return await self._engine.health()

    async def count_prompt_tokens(self, request: Request) -> int | None:
        """As the engine behind knows it; contacts nobody."""
        return await self._engine.count_prompt_tokens(request)

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        self._book.spend(request, self.provider, int(self._clock()))
        async with aclosing(self._engine.generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk
