"""One request: gather, decide, run, escalate, fall back, record.

A session asks ``routing.decide`` (pure) for a route, runs that route's engine and passes its
chunks up. Only here does a request move to another engine: it **escalates** when the monitor says
that the device's answer is not worth showing, **spills** when an engine is busy and **falls back**
when one fails, and always before the first piece of text, so that the route an app was told is the
route that answered. One exception: what the cloud began and cannot end, the device ends, from the
text that came; the route says so from that piece on. Nobody below retries across engines.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from overspill.billing import Bill
from overspill.continuation import Continuation
from overspill.engines.base import Engine
from overspill.errors import (
    BusyError,
    ConfigurationError,
    EngineError,
    ModelError,
    OverspillError,
    TransportError,
    TrustError,
)
from overspill.forecast import forecast
from overspill.gathering import Gathered, Routes, gather, observe
from overspill.hedging import race
from overspill.pace import Stopwatch
from overspill.redacting import RedactingEngine
from overspill.refusals import refusal
from overspill.routing.cost import answer_limit
from overspill.routing.decide import decide, remember
from overspill.routing.monitor import Monitor, has_time_to_move
from overspill.routing.privacy import floor_of
from overspill.routing.session_memory import after_escalation
from overspill.types.chat import Chunk, Finish, Privacy, Request, Watch
from overspill.types.reply import ReplyChunk
from overspill.types.route import Plan, Route, RouteDecision, RouteReason, RouteTaken, Verdict
from overspill.watching import Escalated, Watcher

MOVABLE = (BusyError, EngineError, ModelError, TransportError, TrustError)
"""After these another route may answer; a usage error would fail everywhere. A trust error moves
a request to the device only: the node that it names is never asked again for this request."""


class Session:
    """The life of one request over the routes of a client."""

    def __init__(self, routes: Routes, request: Request) -> None:
        self._routes = routes
        self._request = replace(request, privacy=request.privacy.tightened_by(routes.floor))
        self._draft = request.draft
        self._journey = Continuation(self._request)

    async def plan(self) -> Plan:
        """Where the request would run and what would leave; nothing is generated."""
        gathered, decision = await self._decide()
        return forecast(self._request, decision, gathered)

    async def run(self) -> AsyncGenerator[ReplyChunk]:
        """Yield the answer. Raises the refusal, or the last route's error with its partial text."""
        gathered, decision = await self._decide()
        self._remember(gathered, decision)
        if decision.route is Route.REFUSED:
            raise refusal(decision, gathered.cards, gathered.cloud.problem)
        taken, left = self._take(decision, gathered), list(decision.alternatives)
        while True:
            started = False
            try:
                async with aclosing(self._start(taken, left, gathered)) as chunks:
                    async for chunk in chunks:
                        started = True
                        self._journey.note(chunk)
                        yield chunk
                return
            except Escalated as escalated:
                taken = self._escalate(taken, escalated.watcher, gathered)
                self._journey.changes.append(taken.changes[-1])
                # Should the cloud fail now, the device's answer is better than none.
                left = [Route.DEVICE, *(route for route in left if route is not Route.CLOUD)]
            except MOVABLE as error:
                if taken.route is Route.CLOUD and not isinstance(error, BusyError):
                    self._routes.cloud.remember(error)
                if not left or (started and not self._goes_on(taken, left[0], error)):
                    raise
                taken = self._move(taken, left.pop(0), error, gathered)
                self._journey.changes.append(taken.changes[-1])

    # In calling order -------------------------------------------------------------------------

    async def _decide(self) -> tuple[Gathered, RouteDecision]:
        gathered = await gather(self._routes, self._request)
        started = time.perf_counter()
        decision = decide(self._request, gathered.situation, self._routes.policy, gathered.cards)
        taken_us = 1e6 * (time.perf_counter() - started)
        return gathered, replace(decision, decision_us=taken_us)

    def _remember(self, gathered: Gathered, decision: RouteDecision) -> None:
        memory = remember(gathered.situation.memory, decision, self._routes.policy)
        self._routes.conversations.remember(self._request, memory)

    def _take(self, decision: RouteDecision, gathered: Gathered) -> RouteTaken:
        return self._told(RouteTaken(decision.route, decision.reason, decision, ""), gathered)

    def _move(
        self, taken: RouteTaken, following: Route, error: OverspillError, gathered: Gathered
    ) -> RouteTaken:
        busy = isinstance(error, BusyError)
        change = f"{taken.route.value} -> {following.value}: {error.code}"
        moved = replace(
            taken,
            route=following,
            reason=RouteReason.SPILL if busy else RouteReason.FALL_BACK,
            changes=(*taken.changes, change),
        )
        return self._told(moved, gathered)

    def _goes_on(self, taken: RouteTaken, following: Route, error: OverspillError) -> bool:
        """Whether the device may end what the cloud began. Not after a trust error: text from a
        peer that is wrong is no beginning."""
        is_down = taken.route is Route.CLOUD and following is Route.DEVICE
        return is_down and not isinstance(error, TrustError) and self._journey.is_possible

    def _escalate(self, taken: RouteTaken, watcher: Watcher, gathered: Gathered) -> RouteTaken:
        """To the cloud, with what the device wrote as a draft, where it may leave."""
        situation, check = gathered.situation, watcher.checks[-1]
        self._draft = self._leaving_draft(watcher.draft, gathered)
        self._routes.conversations.remember(
            self._request, after_escalation(self._routes.conversations.recall(self._request), check)
        )
        moved = replace(
            taken,
            route=Route.CLOUD,
            reason=RouteReason.ESCALATE,
            changes=(*taken.changes, f"{Route.DEVICE} -> {Route.CLOUD}: {check.code}"),
            monitor=tuple(watcher.checks),
            thrown=watcher.usage(situation.tokens_for(Route.DEVICE) or 0),
        )
        return self._told(moved, gathered)

    def _leaving_draft(self, draft: str, gathered: Gathered) -> str:
        """The draft, unless it holds what would have kept the request itself here."""

        def floor(request: Request) -> Privacy:
            memory, policy = gathered.situation.memory, self._routes.policy
            return floor_of(request, self._routes.floor, memory, policy)

        request = self._request
        if request.draft or not draft.strip():
            return request.draft
        return draft if floor(replace(request, draft=draft)) is floor(request) else ""

    def _told(self, taken: RouteTaken, gathered: Gathered) -> RouteTaken:
        """The route with the model and the assurance that an app is told before the first byte."""
        result = gathered.cloud.result if taken.route is Route.CLOUD else None
        return replace(
            taken,
            model=gathered.cards[taken.route].name,
            assurance=result.assurance.name if result else "NONE",
        )

    def _start(
        self, taken: RouteTaken, left: Sequence[Route], gathered: Gathered
    ) -> AsyncGenerator[ReplyChunk]:
        """The route's stream; with the decision's hedge, if it has one and is what was decided."""
        hedge = taken.decision.hedge
        if hedge is None or taken.changes or taken.reason is RouteReason.TRIAL:
            self._routes.hedges.note(hedged=False)
            return self._on(taken, gathered, may_leave=Route.CLOUD in left)
        change = f"{taken.route.value} -> {hedge.route.value}: hedge"
        other = replace(
            taken, route=hedge.route, reason=RouteReason.SPILL, changes=(*taken.changes, change)
        )

        def second() -> AsyncGenerator[ReplyChunk]:
            self._routes.hedges.note(hedged=True)
            return self._on(self._told(other, gathered), gathered)

        def lost(error: OverspillError) -> None:
            if isinstance(error, TrustError | TransportError):
                self._routes.cloud.remember(error)

        return race(self._on(taken, gathered), second, hedge.after_s, lost)

    async def _on(
        self, taken: RouteTaken, gathered: Gathered, *, may_leave: bool = False
    ) -> AsyncGenerator[ReplyChunk]:
        """Run the route's engine; an error that leaves here carries the text that came before.

        Raises ``Escalated``, before anything was shown, where the answer ``may_leave``.
        """
        timing = Stopwatch()
        monitor = self._monitor(taken, gathered, may_leave=may_leave)
        watcher = Watcher(monitor)
        request = self._request_for(taken.route, gathered, monitor.watch)
        try:
            answer = self._bill(taken, gathered).of(self._engine(taken.route).generate(request))
            with self._routes.meter.generating(taken.route) as beside:
                async with aclosing(answer) as chunks:
                    async for chunk in chunks:
                        timing.lap()
                        if (end := chunk.finish) is not None:
                            observe(self._routes, request, taken.route, end, timing.timing, beside)
                        for shown in watcher.take(chunk):
                            yield self._reply_chunk(shown, _judged(taken, watcher))
                        if watcher.escalates:
                            raise Escalated(watcher)
        except OverspillError as error:
            error.partial = error.partial or watcher.text
            raise

    def _monitor(self, taken: RouteTaken, gathered: Gathered, *, may_leave: bool) -> Monitor:
        """What judges the answer; of a cloud's, only whether it is one."""
        here, situation = taken.route is Route.DEVICE, gathered.situation
        monitor = Monitor.of(
            self._request,
            taken.decision,
            self._routes.policy,
            gathered.cards,
            situation.now_unix,
            taken.route,
            may_leave=may_leave and here,
        )
        in_time = has_time_to_move(self._request, situation, monitor.hold_tokens)
        return monitor if in_time else replace(monitor, may_leave=False)

    def _request_for(self, route: Route, gathered: Gathered, watch: Watch | None) -> Request:
        """What the route is asked: of a request that moved, what is left of it."""
        card, tokens = gathered.cards[route], gathered.situation.tokens_for(route) or 0
        asked = self._journey.request() if self._journey.changes else self._request
        asked = replace(asked, max_tokens=answer_limit(asked, card, tokens), watch=watch)
        if route is not Route.CLOUD or asked.draft or not self._draft:
            return asked
        tokenizer = gathered.cards[Route.DEVICE].tokenizer
        if card.tokenizer and tokenizer and card.tokenizer != tokenizer:
            return asked  # it would be dropped there
        return replace(asked, draft=self._draft, draft_tokenizer=tokenizer)

    def _bill(self, taken: RouteTaken, gathered: Gathered) -> Bill:
        spending, card = self._routes.spending, gathered.cards[taken.route]
        return Bill(spending, self._request.app, taken.route, card, gathered.situation.device)

    def _engine(self, route: Route) -> Engine:
        if route is Route.THIRD_PARTY and self._routes.third_party is not None:
            return self._routes.third_party
        engine = self._routes.device if route is Route.DEVICE else self._routes.cloud.engine
        if engine is None:
            raise EngineError(f"There is no engine for the route '{route.value}'.")
        return engine if route is Route.DEVICE else RedactingEngine(engine, self._routes.policy)

    def _reply_chunk(self, chunk: Chunk, taken: RouteTaken) -> ReplyChunk:
        piece = ReplyChunk(
            route=taken,
            text=chunk.text,
            token_ids=chunk.token_ids,
            logprobs=chunk.logprobs,
            tool_calls=chunk.tool_calls,
            tool_call_deltas=chunk.tool_call_deltas,
            reasoning=chunk.reasoning,
            finish=chunk.finish,
        )
        return piece if chunk.finish is None else self._settle(piece, chunk.finish)

    def _settle(self, piece: ReplyChunk, finish: Finish) -> ReplyChunk:
        """The end: remember where and how fast it ran, keep the receipt, tell what left."""
        taken = replace(piece.route, model=finish.model)
        if taken.changes:
            memory = self._routes.conversations.recall(self._request)
            memory = replace(memory, route=taken.route, reason=taken.reason)
            self._routes.conversations.remember(self._request, memory)
        cloud = self._routes.cloud.engine
        if cloud is not None:  # also after a fall-back: what left has left
            taken = replace(taken, bytes_sent=cloud.bytes_sent(self._request.id))
            taken = replace(taken, changes=(*taken.changes, *cloud.moves(self._request.id)))
        third_party = self._routes.third_party
        if third_party is not None:
            sent = third_party.bytes_sent(self._request.id)
            taken = replace(taken, bytes_sent=taken.bytes_sent + sent)
        if taken.route is not Route.CLOUD or cloud is None:
            return replace(piece, route=taken)
        receipt = cloud.record(self._request.id).receipt
        try:
            self._routes.receipts.add(receipt)
        except ConfigurationError as error:  # the answer is confirmed, and carries its receipt
            warnings.warn(f"{error}", stacklevel=2)
        return replace(piece, route=replace(taken, node=receipt.node), receipt=receipt)


def _judged(taken: RouteTaken, watcher: Watcher) -> RouteTaken:
    """The route with the monitor's word. What it would have thrown away, had the cloud not failed,
    stays doubtful."""
    if taken.route is not Route.DEVICE:
        return replace(taken, low_confidence=watcher.doubts)
    left = any(check.verdict is Verdict.ESCALATE for check in taken.monitor)
    checks = (*taken.monitor, *watcher.checks)
    return replace(taken, monitor=checks, low_confidence=left or watcher.doubts)
