"""The replay: a trace under one rule, on a simulated clock, event by event.

A client learns from an answer when that has ended, and never from what is still under way; calls of
a chain follow each other and share a real :class:`~overspill.budget.Budget`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from itertools import count

from overspill.budget import Budget, ChainLengths
from overspill.errors import BudgetExhausted
from overspill.evals.traces import Job, Trace
from overspill.evals.traces_rules import Cards, Choice, Memory, Rule
from overspill.evals.traces_world import Outcome, attempt
from overspill.routing.energy import joules
from overspill.types.card import ModelCard
from overspill.types.chat import Request
from overspill.types.route import DeviceProfile, Route


@dataclass(frozen=True, slots=True)
class Result:
    """How one job ended: by which route, after how many seconds, right, late, for how much."""

    route: Route
    seconds: float
    right: bool
    late: bool
    cost: float
    joules: float
    hedged: bool = False


@dataclass(frozen=True, slots=True)
class ChainResult:
    """How a chain ended: with all its calls, or with a typed error at its deadline."""

    seconds: float
    calls: int
    completed: bool
    right: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """All of a trace under one rule."""

    results: tuple[Result, ...]
    chains: tuple[ChainResult, ...]


@dataclass(slots=True)
class _ChainRun:
    """A chain under way: its calls that are still to come, under one budget."""

    jobs: tuple[Job, ...]
    budget: Budget
    began_s: float
    done: int = 0
    right: int = 0


@dataclass(slots=True)
class Replay:
    """One rule's way through a trace. ``slow`` divides the device's speed; ``new_card`` is the
    cloud's model from ``new_card_from_s`` on, with P(right) ``new_p_right`` where it answers."""

    trace: Trace
    rule: Rule
    cards: Cards
    chain_s: float = 8.0
    slow: float = 1.0
    new_card: ModelCard | None = None
    new_card_from_s: float = float("inf")
    new_p_right: float = 1.0
    _memory: Memory = field(default_factory=Memory)
    _lengths: ChainLengths = field(default_factory=ChainLengths)
    _events: list[tuple[float, int, object]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)
    _busy_until: list[float] = field(default_factory=list)
    _now_s: float = 0.0

    def run(self) -> Replayed:
        """Play the whole trace."""
        results: list[Result] = []
        chains: list[ChainResult] = []
        for job in self.trace.jobs:
            self._at(job.at_s, job)
        for jobs in self.trace.chains:
            self._at(jobs[0].at_s, jobs)
        while self._events:
            self._now_s, _, event = heapq.heappop(self._events)
            match event:
                case Job():
                    results.append(self._answer(event, event.request)[0])
                case tuple():
                    self._begin(event)
                case _ChainRun():
                    if (ended := self._call(event)) is not None:
                        chains.append(ended)
                case _Learnt():
                    self._memory.learn(event.job, event.outcome, self._cards(), self._now_s)
        return Replayed(tuple(results), tuple(chains))

    # Chains -----------------------------------------------------------------------------------

    def _begin(self, jobs: tuple[Job, ...]) -> None:
        budget = Budget(
            seconds=self.chain_s, calls=self._lengths.expected, clock=lambda: self._now_s
        )
        self._at(self._now_s, _ChainRun(jobs, budget, self._now_s))

    def _call(self, chain: _ChainRun) -> ChainResult | None:
        """The chain's next call; its result where it was the last, or came too late."""
        job = chain.jobs[chain.done]
        try:
            request = chain.budget.shape(job.request)
        except BudgetExhausted:
            return self._ended(chain, self._now_s, completed=False)
        hold = chain.budget.reserve(request)
        result, _ = self._answer(job, request)
        chain.budget.release(hold)
        left_s = request.deadline_s or 0.0
        if result.seconds > left_s:  # the budget ends the call then
            return self._ended(chain, self._now_s + left_s, completed=False)
        chain.done += 1
        chain.right += result.right
        if chain.done == len(chain.jobs):
            return self._ended(chain, self._now_s + result.seconds, completed=True)
        self._at(self._now_s + result.seconds + job.gap_s, chain)
        return None

    def _ended(self, chain: _ChainRun, end_s: float, *, completed: bool) -> ChainResult:
        self._lengths.observe(chain.budget.calls_made)
        return ChainResult(end_s - chain.began_s, chain.done, completed, chain.right)

    # One job ----------------------------------------------------------------------------------

    def _answer(self, job: Job, request: Request) -> tuple[Result, Choice]:
        cards = self._cards()
        job = self._as_of_now(job)
        self._memory.under_way = self._active(self._now_s)
        choice = self.rule.choose(job, request, self._memory, self.trace, self._now_s, cards)
        tries = [self._try(job, choice.route, self._now_s)]
        begun_s = [0.0]
        hedge = choice.hedge
        if hedge is not None and tries[0].first_s > hedge.after_s:
            tries.append(self._try(job, hedge.route, self._now_s + hedge.after_s))
            begun_s.append(hedge.after_s)
        self._memory.hedges.note(hedged=len(tries) > 1)
        if tries[0].failed and len(tries) == 1 and choice.may_move:
            other = Route.DEVICE if choice.route is Route.CLOUD else Route.CLOUD
            begun_s.append(tries[0].total_s)
            tries.append(self._try(job, other, self._now_s + tries[0].total_s))
        return self._result(job, request, tries, begun_s), choice

    def _try(self, job: Job, route: Route, at_s: float) -> Outcome:
        outcome = attempt(self.trace, job, route, at_s, self._active(at_s), self.slow)
        if route is Route.DEVICE:
            self._busy_until.append(at_s + outcome.total_s)
        self._at(at_s + outcome.total_s, _Learnt(job, outcome))
        return outcome

    def _active(self, at_s: float) -> int:
        """Generations that are under way on the device."""
        self._busy_until = [end for end in self._busy_until if end > at_s]
        return len(self._busy_until)

    def _result(
        self, job: Job, request: Request, tries: list[Outcome], begun_s: list[float]
    ) -> Result:
        """The first to give text answers; every try is charged."""
        order = sorted(range(len(tries)), key=lambda n: begun_s[n] + tries[n].first_s)
        won = next((n for n in order if not tries[n].failed), order[0])
        winner, seconds = tries[won], begun_s[won] + tries[won].total_s
        deadline_s = request.deadline_s
        return Result(
            route=winner.route,
            seconds=seconds,
            right=not winner.failed and job.is_right(winner.route),
            late=winner.failed or (deadline_s is not None and seconds > deadline_s),
            cost=sum(self._cost(one) for one in tries),
            joules=sum(joules(one.route, one.total_s, DeviceProfile()) for one in tries),
            hedged=len(tries) > 1 and not tries[0].failed,
        )

    def _cost(self, outcome: Outcome) -> float:
        card = self._cards()[outcome.route]
        return card.cost(outcome.usage.prompt_tokens, outcome.usage.completion_tokens)

    def _cards(self) -> Cards:
        if self.new_card is None or self._now_s < self.new_card_from_s:
            return self.cards
        return {**self.cards, Route.CLOUD: self.new_card}

    def _as_of_now(self, job: Job) -> Job:
        if self.new_card is None or self._now_s < self.new_card_from_s:
            return job
        return replace(job, p_right={**job.p_right, Route.CLOUD: self.new_p_right})

    def _at(self, moment_s: float, event: object) -> None:
        heapq.heappush(self._events, (moment_s, next(self._numbers), event))


@dataclass(frozen=True, slots=True)
class _Learnt:
    """A try that ended."""

    job: Job
    outcome: Outcome
