"""What the daemon did lately, in memory: who asked, where it ran and why, never what was said."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from overspill.errors import OverspillError
from overspill.types.chat import Request
from overspill.types.reply import ReplyChunk
from overspill.types.route import Plan

KEPT = 200
BACKLOG = 64
"""Events that a slow reader may be behind; it loses the oldest beyond that, and is told."""


@dataclass(frozen=True, slots=True)
class Event:
    """One answer that ended. ``seq`` counts from 1; times are Unix seconds and seconds.

    ``error`` is the code of what ended it; ``changes`` are moves to another engine.
    """

    seq: int
    unix_s: float
    request_id: str
    app: str
    route: str | None
    reason: str | None
    model: str | None
    seconds: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    bytes_sent: int = 0
    assurance: str = "NONE"
    receipt_id: str | None = None
    changes: tuple[str, ...] = ()
    error: str | None = None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "changes": list(self.changes)}


@dataclass(slots=True)
class Running:
    """An answer in the making; its route is known with its first piece."""

    request_id: str
    app: str
    unix_s: float
    piece: ReplyChunk | None = None
    pieces: int = 0

    def document(self) -> dict[str, Any]:
        """As JSON."""
        taken = self.piece.route if self.piece is not None else None
        return {
            "request_id": self.request_id,
            "app": self.app,
            "route": taken and taken.route.value,
            "reason": taken and taken.reason.value,
            "model": taken and taken.model,
            "pieces": self.pieces,
            "seconds": round(time.time() - self.unix_s, 1),
        }


@dataclass(slots=True)
class Totals:
    """Since the daemon began. Tokens are those of prompts and answers together."""

    answers: int = 0
    failures: int = 0
    bytes_sent: int = 0
    tokens_by_route: dict[str, int] = field(default_factory=dict)

    def count(self, event: Event) -> None:
        """Add one answer."""
        self.bytes_sent += event.bytes_sent
        if event.error is not None:
            self.failures += 1
            return
        self.answers += 1
        if event.route is not None:
            tokens = event.prompt_tokens + event.completion_tokens
            self.tokens_by_route[event.route] = self.tokens_by_route.get(event.route, 0) + tokens


class Plans:
    """Plans that a person's consent was missing for, the newest :data:`KEPT`; no content."""

    def __init__(self) -> None:
        self._plans: dict[str, tuple[str, Plan]] = {}

    def keep(self, app: str, plan: Plan) -> None:
        """Keep the plan of a request of ``app``."""
        self._plans[plan.request_id] = (app, plan)
        if len(self._plans) > KEPT:
            del self._plans[next(iter(self._plans))]

    def of(self, plan_id: str, app: str | None) -> Plan | None:
        """The plan, where it is this app's; None for ``app`` sees every app's."""
        owner, plan = self._plans.get(plan_id, ("", None))
        return plan if app in (None, owner) else None


class Journal:
    """The last events, and those who listen for the next; plans that wait for a person."""

    def __init__(self) -> None:
        self.plans = Plans()
        self.totals = Totals()
        self._last: deque[Event] = deque(maxlen=KEPT)
        self._listeners: set[MemoryObjectSendStream[Event]] = set()
        self._running: dict[str, Running] = {}
        self._seq = 0

    @property
    def running(self) -> tuple[Running, ...]:
        """Answers in the making, the oldest first."""
        return tuple(self._running.values())

    @property
    def last(self) -> tuple[Event, ...]:
        """The newest last."""
        return tuple(self._last)

    async def watched(
        self, request: Request, pieces: AsyncGenerator[ReplyChunk]
    ) -> AsyncGenerator[ReplyChunk]:
        """Hand ``pieces`` on, and write down how they ended."""
        began, piece, error = time.time(), None, "cancelled"
        running = Running(request.id, request.app, began)
        self._running[request.id] = running
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    if piece.finish is not None:
                        error = ""
                    running.piece, running.pieces = piece, running.pieces + 1
                    yield piece
        except OverspillError as failure:
            error = failure.code
            raise
        except Exception:
            error = "internal_error"
            raise
        finally:
            self._running.pop(request.id, None)
            self._write(request, piece, began, error or None)

    @contextmanager
    def listening(self) -> Iterator[MemoryObjectReceiveStream[Event]]:
        """What happens from now on."""
        sender, receiver = anyio.create_memory_object_stream[Event](BACKLOG)
        self._listeners.add(sender)
        try:
            with sender, receiver:
                yield receiver
        finally:
            self._listeners.discard(sender)

    def _write(
        self, request: Request, piece: ReplyChunk | None, began: float, error: str | None
    ) -> None:
        self._seq += 1
        event = _event(self._seq, request, piece, began, error)
        self._last.append(event)
        self.totals.count(event)
        for listener in tuple(self._listeners):
            try:
                listener.send_nowait(event)
            except anyio.WouldBlock:
                # Whoever does not read is let go of, and comes again with the last number it has.
                listener.close()
                self._listeners.discard(listener)


def _event(
    seq: int, request: Request, piece: ReplyChunk | None, began: float, error: str | None
) -> Event:
    taken = piece.route if piece is not None else None
    usage = piece.finish.usage if piece is not None and piece.finish is not None else None
    receipt = piece.receipt if piece is not None else None
    return Event(
        seq=seq,
        unix_s=round(began, 3),
        request_id=request.id,
        app=request.app,
        route=taken.route.value if taken else None,
        reason=taken.reason.value if taken else None,
        model=taken.model if taken else None,
        seconds=round(time.time() - began, 6),
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        bytes_sent=taken.bytes_sent if taken else 0,
        assurance=taken.assurance if taken else "NONE",
        receipt_id=receipt.id if receipt else None,
        changes=taken.changes if taken else (),
        error=error,
    )
