"""A budget that a chain of calls shares: seconds on the clock, money in a purse, tokens.

Each call takes its place in three steps. It *reserves* what it may cost at most, so that calls
side by side cannot spend the same money twice; what is left goes with the request and shapes the
decision where it may run (:mod:`overspill.routing.cost`); and it *settles* with the tokens that
were really used, by the price on the card of the model that answered. Budgets nest: an inner one
never has more than what is around it, and what is spent inside is spent outside too.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from overspill.errors import BudgetExhausted, DeadlineExceeded, InvalidRequest
from overspill.types.budget import Left
from overspill.types.card import ModelCard
from overspill.types.chat import Finish, Request
from overspill.types.reply import ReplyChunk

EXPECTED_CALLS = 4
"""Of a chain that nobody said the length of, before any has ended."""
MAX_ANSWER_TOKENS = 1024
"""What an answer without a limit of its own reserves: the engines' own default limit."""
_TURN_TOKENS = 64
"""What a chat template adds to a turn, at most; a token is at least one byte."""
Run = Callable[[Request], AsyncGenerator[ReplyChunk]]
Priced = Callable[[str], Awaitable[Iterable[ModelCard]]]


@dataclass(slots=True)
class Hold:
    """What one call under way may still take."""

    cost: float = 0.0
    tokens: int = 0


class Budget:
    """What is left for a chain of calls. ``seconds`` run from construction, ``cost`` is in currency
    units, ``tokens`` counts prompts and answers together.

    ``calls`` is how many the chain will make, where that is known: none takes more than its part
    of the time without need. ``around`` is the budget that this one is inside of. ``prices`` are
    the cards of models that answered before, shared by a client's budgets: until a model's price
    is known, calls side by side are not held against each other. Belongs to one event loop;
    ``clock`` gives seconds that only grow.
    """

    def __init__(
        self,
        *,
        seconds: float | None = None,
        cost: float | None = None,
        tokens: int | None = None,
        calls: int | None = None,
        around: Budget | None = None,
        prices: dict[str, ModelCard] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        given = {"seconds": seconds, "cost": cost, "tokens": tokens, "calls": calls}
        for name, value in given.items():
            if value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                raise InvalidRequest(
                    f"'{name}' is {value!r:.40}.", param=name, mend="Give a number above 0."
                )
        self._clock = clock
        self._ends = None if seconds is None else clock() + seconds
        self._purse, self._tokens = cost, tokens
        self._expected_calls = EXPECTED_CALLS if calls is None else calls
        self._around = around
        self._prices = {} if prices is None else prices
        self._holds: list[Hold] = []
        self.calls_made = 0
        """Calls begun so far, those of budgets inside too."""

    # What is left ------------------------------------------------------------------------------

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the nearest deadline; None without one."""
        left = None if self._ends is None else self._ends - self._clock()
        return _least(left, self._around.seconds_left if self._around else None)

    @property
    def cost_left(self) -> float | None:
        """Currency units that are not spent; None without a purse."""
        return _least(self._purse, self._around.cost_left if self._around else None)

    @property
    def tokens_left(self) -> int | None:
        """Tokens that are not used; None without a limit."""
        left = _least(self._tokens, self._around.tokens_left if self._around else None)
        return None if left is None else int(left)

    def left(self) -> Left:
        """What is neither spent nor reserved, and for how many calls."""
        left = Left(self.seconds_left, self.cost_left, self.tokens_left, self._calls_left())
        for budget in self._chain():
            if left.cost is not None and budget._purse is not None:
                free = budget._purse - sum(hold.cost for hold in budget._holds)
                left = replace(left, cost=min(left.cost, free))
            if left.tokens is not None and budget._tokens is not None:
                unused = budget._tokens - sum(hold.tokens for hold in budget._holds)
                left = replace(left, tokens=min(left.tokens, unused))
        return left

    def check(self) -> Left:
        """What is left. Raises ``BudgetExhausted`` when time, money or tokens are used up."""
        left = self.left()
        if left.seconds is not None and left.seconds <= 0:
            raise _too_late()
        for name, free, whole in (
            ("cost", left.cost, self.cost_left),
            ("tokens", left.tokens, self.tokens_left),
        ):
            if free is not None and free <= 0:
                raise _used_up(name, reserved=whole is not None and whole > 0)
        return left

    # One call ----------------------------------------------------------------------------------

    def shape(self, request: Request) -> Request:
        """The request with what is left, and the chain's deadline where that is nearer.

        Raises ``BudgetExhausted`` when something is used up.
        """
        left = self.check()
        own = request.deadline_s
        return replace(request, left=left, deadline_s=_least(own, left.seconds))

    async def run(self, request: Request, run: Run, priced: Priced) -> AsyncGenerator[ReplyChunk]:
        """The answer of ``run``, within the budget: reserved before, ended in time, settled after.

        ``priced`` gives the cards to settle an answer of a model by. Raises ``BudgetExhausted``,
        with the text so far in ``partial`` where it came too late.
        """
        shaped = self.shape(request)
        hold = self.reserve(shaped)
        try:
            async for chunk in self._in_time(run(shaped)):
                if chunk.finish is not None:
                    self.spend(chunk.finish, await priced(chunk.finish.model))
                yield chunk
        finally:
            self.release(hold)

    def reserve(self, request: Request) -> Hold:
        """Begin a call: hold what a shaped request may take at most, as far as there is as much."""
        prompt = sum(len(m.content.encode()) + _TURN_TOKENS for m in request.messages)
        answer = request.max_tokens or MAX_ANSWER_TOKENS
        left = request.left or Left()
        most = max((card.cost(prompt, answer) for card in self._prices.values()), default=0.0)
        hold = Hold(
            cost=most if left.cost is None else min(most, left.cost),
            tokens=prompt + answer if left.tokens is None else min(prompt + answer, left.tokens),
        )
        for budget in self._chain():
            budget._holds.append(hold)
            budget.calls_made += 1
        return hold

    def release(self, hold: Hold) -> None:
        """End a call: what it took has been spent, what it did not is free again."""
        for budget in self._chain():
            budget._holds.remove(hold)

    def spend(self, finish: Finish, cards: Iterable[ModelCard]) -> None:
        """Take what an answer used out of purse and tokens, by the price on its model's card."""
        self._prices |= {card.name: card for card in cards}
        usage, card = finish.usage, self._prices.get(finish.model)
        cost = card.cost(usage.prompt_tokens, usage.completion_tokens) if card else 0.0
        self.take(cost, usage.total_tokens)

    def take(self, cost: float, tokens: int) -> None:
        """Spend, here and in every budget around."""
        for budget in self._chain():
            if budget._purse is not None:
                budget._purse -= cost
            if budget._tokens is not None:
                budget._tokens -= tokens

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Ends what runs inside at the chain's deadline. Raises ``BudgetExhausted``."""
        try:
            async with asyncio.timeout(self.check().seconds):
                yield
        except TimeoutError:
            raise _too_late() from None

    # ------------------------------------------------------------------------------------------

    def _chain(self) -> Iterator[Budget]:
        """This budget, and those around it."""
        budget: Budget | None = self
        while budget is not None:
            yield budget
            budget = budget._around

    def _calls_left(self) -> int:
        """By the budget in the chain that has the least time for each call."""
        counted = []
        for budget in self._chain():
            calls = max(1, budget._expected_calls - budget.calls_made)
            ends = budget._ends
            counted.append((math.inf if ends is None else (ends - self._clock()) / calls, calls))
        return min(counted)[1]

    async def _in_time(self, chunks: AsyncGenerator[ReplyChunk]) -> AsyncGenerator[ReplyChunk]:
        """The chunks that come before the deadline. What was under way then is cancelled, but not
        waited for: a road that is gone can take seconds to be left."""
        text: list[str] = []
        step: asyncio.Future[ReplyChunk | None] | None = None
        is_late = False
        try:
            while True:
                step = asyncio.ensure_future(anext(chunks, None))
                await asyncio.wait({step}, timeout=self.seconds_left)
                is_late = not step.done()
                if is_late:
                    raise _too_late("".join(text))
                chunk = self._result(step, text)
                if chunk is None:
                    return
                text.append(chunk.text)
                yield chunk
        finally:
            leaving = asyncio.ensure_future(_leave(step, chunks))
            _LEAVING.add(leaving)
            leaving.add_done_callback(_LEAVING.discard)
            if not is_late:
                await asyncio.shield(leaving)

    def _result(
        self, step: asyncio.Future[ReplyChunk | None], text: list[str]
    ) -> ReplyChunk | None:
        """The step's chunk. An engine's own word that the deadline passed means the chain's, once
        that has."""
        try:
            return step.result()
        except DeadlineExceeded:
            left = self.seconds_left
            if left is None or left > 0:
                raise  # the call's own was nearer
            raise _too_late("".join(text)) from None


_LEAVING: set[asyncio.Future[None]] = set()
"""Answers that are being left: the event loop alone would forget them."""


async def _leave(
    step: asyncio.Future[ReplyChunk | None] | None, chunks: AsyncGenerator[ReplyChunk]
) -> None:
    """End the step that runs, then the answer; it ends as it likes, nobody waits for it."""
    if step is not None and not step.done():
        step.cancel()
        await asyncio.wait({step})
        if not step.cancelled():
            step.exception()  # looked at: it was left already
    await chunks.aclose()


def _least(one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return min(known, default=None)


def _too_late(partial: str = "") -> BudgetExhausted:
    return BudgetExhausted(
        "The chain's deadline has passed.", mend="Give the budget more seconds.", partial=partial
    )


def _used_up(what: str, *, reserved: bool) -> BudgetExhausted:
    if reserved:
        return BudgetExhausted(
            f"What the chain's budget has left of {what} is reserved for calls under way.",
            mend="Wait for them, or give them a 'max_tokens'.",
        )
    purse = "purse is empty" if what == "cost" else "tokens are used up"
    return BudgetExhausted(f"The chain's {purse}.", mend=f"Give the budget more {what}.")


class ChainLengths:
    """How many calls the chains of one client make."""

    def __init__(self) -> None:
        self._mean: float | None = None

    @property
    def expected(self) -> int:
        """Calls to plan for where nobody says."""
        return EXPECTED_CALLS if self._mean is None else max(1, round(self._mean))

    def observe(self, calls: int) -> None:
        """Learn from a chain that has ended."""
        if calls:
            self._mean = calls if self._mean is None else 0.7 * self._mean + 0.3 * calls


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
