"""The gate in front of a provider: a spent grant first, then the request."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from overspill.engines.around import EngineAround
from overspill.engines.base import Engine
from overspill.providers.grants import GrantBook
from overspill.types.chat import Chunk, Request


class GrantedEngine(EngineAround):
    """``engine``, which is ``provider``'s, for requests whose grant the ``book`` lets be spent.

    Nothing is sent, and no connection made, for anything else: raises ``ConsentRequired``. What it
    says of itself is as the engine behind was configured or knows it; that contacts nobody.
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
        super().__init__(engine)
        self.provider = provider
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

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        self._book.spend(request, self.provider, int(self._clock()))
        async with aclosing(self._engine.generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk
