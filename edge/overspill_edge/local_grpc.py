"""The `Local` service of the daemon: the cloud's own messages, unsealed, on a Unix socket.

Never over TCP, but on loopback where a system has no such sockets. Whoever calls brings a ticket of
the handshake; cancel is an order of its own on the connection, and a connection that ends ends its
answers. The dialects' rules hold here too: translate, let the client answer, translate back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from overspill import errors
from overspill._version import __version__
from overspill.transport.local.connection import StreamedConnection, chunk_events, embed_events
from overspill.transport.local.grpc_errors import refuse
from overspill.transport.local.options import TOKEN_KEY, LocalOptions, bearer, channel_settings
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Request
from overspill.types.embedding import EmbedReply, EmbedRequest
from overspill.types.reply import Availability, ReceiptRecord, ReplyChunk
from overspill.types.route import Plan as RoutePlan
from overspill.wire import convert
from overspill.wire.told import to_json
from overspill.wire.v1 import chat_pb2, local_pb2, local_pb2_grpc
from overspill_edge.access import Caller
from overspill_edge.journal import Journal
from overspill_edge.tickets import Tickets
from overspill_edge.tokens import Scope
from overspill_edge.work import WorkRegistry


class LocalAnswerer(Protocol):
    """The part of :class:`overspill.AsyncOverspill` that this service uses."""

    def run_request(self, request: Request) -> AsyncGenerator[ReplyChunk]:
        """The answer in pieces."""

    async def plan_request(self, request: Request) -> RoutePlan:
        """Where the request would run."""

    async def run_embedding(self, request: EmbedRequest) -> EmbedReply:
        """The vectors."""

    async def models(self) -> tuple[ModelCard, ...]:
        """The models that can answer now."""

    async def availability(self) -> Availability:
        """The device's and the cloud's state."""

    async def receipts(self, limit: int = 100) -> tuple[ReceiptRecord, ...]:
        """The newest receipts."""

    async def pull(self, model: str | None = None, *, on_progress: Any = None) -> Any:
        """Fetch a model."""

    def queue_position(self, request_id: str) -> int | None:
        """Where a request stands in the device's queue."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What every call needs."""

    answerer: LocalAnswerer
    tickets: Tickets
    registry: WorkRegistry
    options: LocalOptions = field(default_factory=LocalOptions)
    journal: Journal = field(default_factory=Journal)


class LocalServer:
    """The running service."""

    def __init__(self, address: str, servicer: _Servicer) -> None:
        self.address = address
        self._servicer = servicer

    def stop_accepting(self) -> None:
        """Refuse what comes from now on; what runs may end."""
        self._servicer.close_all()

    def hand_over(self) -> None:
        """As :meth:`stop_accepting`; apps are told that another daemon takes what comes."""
        self._servicer.close_all(moved=True)

    async def drained(self) -> None:
        """Wait until nothing runs; see :meth:`WorkRegistry.stop_all` for who makes an end."""
        self.stop_accepting()
        await self._servicer.idle.wait()


@asynccontextmanager
async def serving_local(desk: Desk, path: Path | None) -> AsyncIterator[LocalServer]:
    """Serve on ``path``, 0600 from its first moment; its folder's lock is held by the caller. None
    is a free port on loopback, where there are no Unix sockets.

    Raises ``ConfigurationError`` where it cannot be bound.
    """
    server = grpc.aio.server(options=channel_settings(desk.options))
    servicer = _Servicer(desk)
    local_pb2_grpc.add_LocalServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]  # generated
    _take_away(path)
    where = "127.0.0.1:0" if path is None else f"unix:{path}"
    previous = os.umask(0o177)
    try:
        port = server.add_insecure_port(where)
        await server.start()
    except RuntimeError as error:
        raise errors.ConfigurationError(
            f"Cannot listen on {where}.", mend="Name another place with --socket."
        ) from error
    finally:
        os.umask(previous)
    try:
        yield LocalServer(f"127.0.0.1:{port}" if path is None else str(path), servicer)
    finally:
        await server.stop(None)
        _take_away(path)


def _take_away(path: Path | None) -> None:
    """A crash leaves its socket behind; gRPC would not bind over it."""
    if path is not None:
        path.unlink(missing_ok=True)


class AppConnection(StreamedConnection):
    """All answers of one app."""

    def __init__(self, desk: Desk, caller: Caller) -> None:
        super().__init__(desk.options)
        self._desk = desk
        self._caller = caller

    def _queue_position(self, request_id: str) -> int | None:
        return self._desk.answerer.queue_position(request_id)

    async def _events(self, message: chat_pb2.ChatRequest) -> AsyncGenerator[local_pb2.StreamEvent]:
        request = _request(message, self._caller)
        with self._desk.registry.counted() as scope:
            work = self._desk.answerer.run_request(request)
            async with aclosing(self._desk.journal.watched(request, work)) as pieces:
                told = False
                async for piece in pieces:
                    for event in _piece_events(piece, with_route=not told):
                        told = True
                        yield event
        if scope.cancel_called:
            raise errors.BusyError("The daemon is shutting down.", mend="Ask again in a moment.")


def _request(message: chat_pb2.ChatRequest, caller: Caller) -> Request:
    """The request, of the app that the ticket names, whatever the message says."""
    request = convert.request_from_proto(message, local=True)
    return replace(request, app=caller.app)


def _piece_events(piece: ReplyChunk, *, with_route: bool) -> list[local_pb2.StreamEvent]:
    chunk = Chunk(
        text=piece.text,
        token_ids=piece.token_ids,
        logprobs=piece.logprobs,
        tool_calls=piece.tool_calls,
        finish=piece.finish,
        tool_call_deltas=piece.tool_call_deltas,
        reasoning=piece.reasoning,
    )
    events = [local_pb2.StreamEvent(event=event) for event in chunk_events(chunk)]
    if events and (with_route or piece.finish is not None):
        events[0].route.json = to_json(piece.route)
    if events and piece.receipt is not None:
        events[-1].receipt.json = to_json(piece.receipt)
    return events


class _Servicer(local_pb2_grpc.LocalServicer):
    """Translates and delegates."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._connections: set[AppConnection] = set()
        self._closed = self._moved = False
        self.idle = asyncio.Event()
        """Set while no app is connected."""
        self.idle.set()

    def close_all(self, *, moved: bool = False) -> None:
        """Take no new work."""
        self._closed, self._moved = True, self._moved or moved
        for connection in self._connections:
            connection.close(moved=moved)

    async def Connect(
        self,
        orders: AsyncIterator[local_pb2.ConnectRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncGenerator[local_pb2.EventBatch]:
        """Answer everything that one app asks."""
        caller = await self._caller(context, Scope.INFER)
        connection = AppConnection(self._desk, caller)
        self._connections.add(connection)
        self.idle.clear()
        if self._closed:
            connection.close(moved=self._moved)
        try:
            async with aclosing(connection.run(orders)) as batches:
                async for batch in batches:
                    yield batch
        finally:
            self._connections.discard(connection)
            if not self._connections:
                self.idle.set()

    async def CountTokens(
        self, message: chat_pb2.ChatRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> local_pb2.CountTokensResponse:
        """Count the prompt's tokens, as the plan does."""
        plan = await self._plan(message, context)
        return local_pb2.CountTokensResponse(prompt_tokens=plan.prompt_tokens)

    async def Plan(
        self, message: chat_pb2.ChatRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> local_pb2.Told:
        """Where a request would run."""
        return local_pb2.Told(json=to_json(await self._plan(message, context)))

    async def Embed(
        self, message: local_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[local_pb2.EmbedEvent]:
        """Embed, with a heartbeat whenever that takes long."""
        caller = await self._caller(context, Scope.INFER)

        async def work() -> EmbedReply:
            request = convert.embed_request_from_proto(message)
            with self._desk.registry.counted():
                return await self._desk.answerer.run_embedding(replace(request, app=caller.app))
            raise errors.BusyError("The daemon is shutting down.", mend="Ask again in a moment.")

        async with aclosing(embed_events(work, self._desk.options)) as events:
            async for event in events:
                yield event

    async def GetStatus(
        self, message: local_pb2.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> local_pb2.Status:
        """Version, and how much runs."""
        await self._caller(context, Scope.INFER, Scope.MODELS, Scope.ADMIN)
        registry = self._desk.registry
        return local_pb2.Status(
            ok=not self._closed,
            active=registry.active,
            queued=registry.waiting,
            version=__version__,
        )

    async def GetModels(
        self, message: local_pb2.GetModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> local_pb2.Models:
        """The models that can answer now."""
        await self._caller(context, Scope.INFER, Scope.MODELS)
        cards = await self._desk.answerer.models()
        return local_pb2.Models(cards=[convert.card_to_proto(card, local=True) for card in cards])

    async def GetAvailability(
        self,
        message: local_pb2.GetAvailabilityRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> local_pb2.Told:
        """The device's and the cloud's state."""
        await self._caller(context, Scope.INFER, Scope.MODELS)
        return local_pb2.Told(json=to_json(await self._desk.answerer.availability()))

    async def GetReceipts(
        self, message: local_pb2.GetReceiptsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[local_pb2.Told]:
        """The newest receipts of this user."""
        await self._caller(context, Scope.INFER, Scope.ADMIN)
        try:
            records = await self._desk.answerer.receipts(message.limit)
        except errors.OverspillError as error:
            await refuse(context, error)
        for record in records:
            yield local_pb2.Told(json=to_json(record))

    async def Pull(
        self, message: local_pb2.PullRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[local_pb2.PullEvent]:
        """Fetch a model, telling how far it is; leaving ends it, and what came is kept."""
        await self._caller(context, Scope.MODELS)
        told: asyncio.Queue[local_pb2.PullEvent] = asyncio.Queue()

        def on_progress(progress: Any) -> None:
            told.put_nowait(local_pb2.PullEvent(progress=_told(progress)))

        async def work() -> None:
            model = message.model if message.HasField("model") else None
            try:
                stored = await self._desk.answerer.pull(model, on_progress=on_progress)
                told.put_nowait(local_pb2.PullEvent(stored=_told(stored)))
            except errors.OverspillError as error:
                told.put_nowait(local_pb2.PullEvent(error=convert.error_to_proto(error)))

        working = asyncio.create_task(work())
        try:
            while True:
                event = await self._next(told)
                yield event
                if event.HasField("stored") or event.HasField("error"):
                    return
        finally:
            working.cancel()

    # ----------------------------------------------------------------------------------------

    async def _next(self, told: asyncio.Queue[local_pb2.PullEvent]) -> local_pb2.PullEvent:
        try:
            return await asyncio.wait_for(told.get(), self._desk.options.heartbeat_s)
        except TimeoutError:
            return local_pb2.PullEvent(heartbeat=chat_pb2.Heartbeat())

    async def _plan(
        self, message: chat_pb2.ChatRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> RoutePlan:
        caller = await self._caller(context, Scope.INFER)
        try:
            return await self._desk.answerer.plan_request(_request(message, caller))
        except errors.OverspillError as error:
            await refuse(context, error)

    async def _caller(self, context: grpc.aio.ServicerContext[Any, Any], *enough: Scope) -> Caller:
        """Who holds the ticket, with one of these scopes at least."""
        sent = str(dict(context.invocation_metadata() or ()).get(TOKEN_KEY, ""))
        caller = self._desk.tickets.holder(sent.removeprefix(bearer("")))
        if caller is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no ticket, or one that ran out")
        if not caller.scopes.intersection(enough):
            await refuse(
                context,
                errors.DaemonRefused(
                    f"The token of {caller.app} lacks the scope '{enough[0].value}'.",
                    mend=f"Issue one with: overspill token new --app {caller.app} "
                    f"--scope {enough[0].value}",
                ),
            )
        return caller


def _told(record: Any) -> local_pb2.Told:
    return local_pb2.Told(json=to_json(record))
