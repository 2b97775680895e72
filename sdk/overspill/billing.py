"""What an answer took is written down when it ends, however it ends."""

from __future__ import annotations

import time
import warnings
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from overspill.errors import ConfigurationError, OverspillError
from overspill.routing.energy import joules
from overspill.state.spending import SpendingStore, Spent
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Finish
from overspill.types.route import DeviceProfile, Route

LEFT = "left"
"""The outcome of an answer that its reader left."""


@dataclass(slots=True)
class Bill:
    """One try on one route, on its way to ``store``."""

    store: SpendingStore
    app: str
    route: Route
    card: ModelCard
    device: DeviceProfile
    outcome: str = LEFT
    finish: Finish | None = None
    tokens: int = 0

    async def of(self, chunks: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
        """The same chunks. Of an answer without an end, the tokens that were seen count."""
        began_s = time.perf_counter()
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    self.tokens += len(chunk.token_ids)
                    self.finish = chunk.finish or self.finish
                    yield chunk
        except OverspillError as error:
            self.outcome = error.code
            raise
        finally:
            self._write(time.perf_counter() - began_s)

    def _write(self, seconds: float) -> None:
        finish = self.finish
        prompt = finish.usage.prompt_tokens if finish else 0
        completion = finish.usage.completion_tokens if finish else self.tokens
        spent = Spent(
            unix_s=int(time.time()),
            app=self.app,
            route=self.route.value,
            model=finish.model if finish else self.card.name,
            outcome=finish.reason.value if finish else self.outcome,
            is_confirmed=finish is not None,
            prompt_tokens=prompt,
            completion_tokens=completion,
            cost=self.card.cost(prompt, completion),
            joules=joules(self.route, seconds, self.device),
        )
        try:
            self.store.add(spent)
        except ConfigurationError as error:  # the answer is there all the same
            warnings.warn(f"{error}", stacklevel=2)
