"""What every route shares: the service behind it, who may ask, and the body that is read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import anyio
from starlette.datastructures import Headers
from starlette.types import Receive
from starlette.types import Scope as AsgiScope

from overspill.cloud_gate import KnownCloud
from overspill.policy_lock import AdminPolicy
from overspill.routing.policy import RoutingPolicy
from overspill.state.spending import Spending
from overspill.types.card import ModelCard
from overspill.types.chat import Privacy, Request
from overspill.types.embedding import EmbedReply, EmbedRequest
from overspill.types.reply import Availability, ReceiptRecord, ReplyChunk
from overspill.types.route import Plan
from overspill_edge.access import Caller, caller_of
from overspill_edge.device import SharedDevice
from overspill_edge.dialect import Asked, Dialect, Source
from overspill_edge.journal import Journal
from overspill_edge.tokens import Scope
from overspill_edge.work import HttpLimits, WorkRegistry, read_body

PRIVACY_HEADER = "x-overspill-privacy"
LARGE_BODY_BYTES = 64 * 1024

_T = TypeVar("_T")
_Asked = TypeVar("_Asked", bound=Asked)


class Answerer(Protocol):
    """The part of :class:`overspill.AsyncOverspill` that the daemon uses."""

    def run_request(self, request: Request) -> AsyncGenerator[ReplyChunk]:
        """The answer in pieces; closing the generator cancels the work."""

    async def plan_request(self, request: Request) -> Plan:
        """Where the request would run; nothing is generated."""

    async def run_embedding(self, request: EmbedRequest) -> EmbedReply:
        """The vectors, computed on this device."""

    async def models(self) -> tuple[ModelCard, ...]:
        """The models that can answer now."""

    async def availability(self) -> Availability:
        """The device's and the cloud's state."""

    async def receipts(self, limit: int = 100) -> tuple[ReceiptRecord, ...]:
        """The newest receipts first."""

    def known_models(self) -> tuple[ModelCard, ...]:
        """The models as far as they are known without asking the cloud."""

    def known_cloud(self) -> KnownCloud | None:
        """What is known of the cloud without asking it."""

    def spending(self, since_unix_s: int = 0) -> list[Spending]:
        """What answers took."""

    @property
    def routing_policy(self) -> RoutingPolicy:
        """The policy that decides."""

    @property
    def admin_policy(self) -> AdminPolicy | None:
        """What the administrator has above it."""


def nothing_loads() -> float | None:
    """Of a client that has loaded its model before it serves."""
    return None


@dataclass(frozen=True, slots=True)
class Service:
    """What every route needs. ``started_unix`` is in seconds.

    ``loading`` tells what share of a model is loaded; None when none is being loaded.
    """

    answerer: Answerer
    floor: Privacy
    registry: WorkRegistry
    limits: HttpLimits
    started_unix: int
    loading: Callable[[], float | None] = nothing_loads
    device: SharedDevice = field(default_factory=SharedDevice)
    journal: Journal = field(default_factory=Journal)


class Endpoint:
    """A route as a plain ASGI app: `receive` stays in its hands."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def _read(
        self, dialect: Dialect[_Asked], scope: AsgiScope, receive: Receive
    ) -> tuple[_Asked, Request]:
        """A body, and the request that it means."""
        source = self._source(scope)
        asked = await self._parse(dialect.parse, scope, receive)
        return asked, dialect.to_request(asked, source)

    def _source(self, scope: AsgiScope) -> Source:
        """Who asks to infer; raises 403 for whoever may not."""
        caller = caller_of(scope)
        caller.require(Scope.INFER)
        privacy = Headers(scope=scope).get(PRIVACY_HEADER)
        return Source(caller.app, self._service.floor, privacy)

    async def _parse(self, parse: Callable[[bytes], _T], scope: AsgiScope, receive: Receive) -> _T:
        """A large body is parsed in a thread: the streams of others go on meanwhile."""
        body = await read_body(scope, receive, self._service.limits)
        if len(body) < LARGE_BODY_BYTES:
            return parse(body)
        return await anyio.to_thread.run_sync(parse, body)


def require_any(scope: AsgiScope, *enough: Scope) -> Caller:
    """The caller, who has one of these scopes at least; raises 403."""
    caller = caller_of(scope)
    if not caller.scopes.intersection(enough):
        caller.require(enough[0])
    return caller
