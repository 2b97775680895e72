"""A budget that a chain of calls shares: seconds on the clock and money in a purse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import replace

from overspill.errors import BudgetExhausted, InvalidRequest
from overspill.types.card import ModelCard
from overspill.types.chat import Finish, Request


class Budget:
    """What is left for a chain of calls. ``seconds`` run from construction."""

    def __init__(self, *, seconds: float | None = None, cost: float | None = None) -> None:
        for name, value in (("seconds", seconds), ("cost", cost)):
            if value is not None and value <= 0:
                raise InvalidRequest(f"'{name}' must be above 0.", param=name)
        self._ends = None if seconds is None else time.monotonic() + seconds
        self._purse = cost

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if self._ends is None else self._ends - time.monotonic()

    @property
    def cost_left(self) -> float | None:
        """Currency units left; None without a purse."""
        return self._purse

    def check(self) -> float | None:
        """Seconds left, None without a deadline. Raises ``BudgetExhausted`` when time or money is
        used up."""
        if self._purse is not None and self._purse <= 0:
            raise BudgetExhausted("The chain's purse is empty.", mend="Give the budget more cost.")
        left = self.seconds_left
        if left is not None and left <= 0:
            raise _too_late()
        return left

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Ends what runs inside at the chain's deadline. Raises ``BudgetExhausted``."""
        try:
            async with asyncio.timeout(self.check()):
                yield
        except TimeoutError:
            raise _too_late() from None

    def shape(self, request: Request) -> Request:
        """The request with the chain's deadline, if that is nearer than its own.

        Raises ``BudgetExhausted`` when time or money is used up.
        """
        left = self.check()
        if left is None:
            return request
        own = request.deadline_s
        return replace(request, deadline_s=left if own is None else min(own, left))

    def spend(self, finish: Finish, cards: Iterable[ModelCard]) -> None:
        """Take what an answer cost out of the purse, by the price on its model's card."""
        if self._purse is None:
            return
        for card in cards:
            if card.name == finish.model:
                self._purse -= card.cost(finish.usage.prompt_tokens, finish.usage.completion_tokens)
                return


def _too_late() -> BudgetExhausted:
    return BudgetExhausted("The chain's deadline has passed.", mend="Give the budget more seconds.")


_BUDGET: ContextVar[Budget | None] = ContextVar("overspill_budget", default=None)


def current_budget() -> Budget | None:
    """The innermost budget around the running code."""
    return _BUDGET.get()


@contextmanager
def use_budget(budget: Budget) -> Iterator[Budget]:
    """Make ``budget`` the one that calls inside the block share."""
    token = _BUDGET.set(budget)
    try:
        yield budget
    finally:
        _BUDGET.reset(token)
