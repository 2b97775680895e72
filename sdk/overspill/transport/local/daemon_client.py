"""The asking end of the daemon's `Local` service: as a worker's, with routes and receipts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from overspill import errors
from overspill.transport.handshake import MOVED, PeerGone
from overspill.transport.local.answers import chunk_of
from overspill.transport.local.client import LocalClient
from overspill.types.card import ModelCard
from overspill.types.chat import Request, merge_chunks
from overspill.types.reply import Availability, ReceiptRecord, ReplyChunk
from overspill.types.route import Plan, RouteTaken
from overspill.wire import convert
from overspill.wire.told import from_json
from overspill.wire.v1 import local_pb2

if TYPE_CHECKING:
    from overspill.models.files import OnProgress
    from overspill.models.store import StoredModel


class DaemonClient(LocalClient):
    """Talks to a daemon. Errors that it raises beside those of the answer itself: ``PeerGone``
    where the daemon is gone before an answer began, ``StreamBroken`` after that."""

    async def run(self, request: Request) -> AsyncGenerator[ReplyChunk]:
        """The answer in pieces; an error carries the text that came before it."""
        taken: RouteTaken | None = None
        said: list[str] = []
        try:
            async with aclosing(self._events(request)) as batches:
                async for events in batches:
                    taken = _route_of(events) or taken
                    piece = _piece(events, taken)
                    said.append(piece.text)
                    yield piece
        except errors.OverspillError as error:
            if isinstance(error, errors.BusyError) and error.reason == MOVED:
                raise PeerGone("The daemon handed over to another one.") from error
            error.partial = error.partial or "".join(said)
            raise

    async def plan(self, request: Request) -> Plan:
        """Where the request would run."""
        message = convert.request_to_proto(request, local=True)
        return from_json(Plan, (await self._unary(self._stub.Plan, message)).json)

    async def models(self) -> tuple[ModelCard, ...]:
        """The models that can answer now."""
        answer = await self._unary(self._stub.GetModels, local_pb2.GetModelsRequest())
        return tuple(convert.card_from_proto(card) for card in answer.cards)

    async def availability(self) -> Availability:
        """The device's and the cloud's state, as the daemon sees them."""
        asked = local_pb2.GetAvailabilityRequest()
        return from_json(Availability, (await self._unary(self._stub.GetAvailability, asked)).json)

    async def receipts(self, limit: int) -> tuple[ReceiptRecord, ...]:
        """The newest receipts of this user."""
        call = self._stub.GetReceipts(
            local_pb2.GetReceiptsRequest(limit=limit), metadata=self._metadata
        )
        async with aclosing(self._messages(call)) as messages:
            return tuple([from_json(ReceiptRecord, told.json) async for told in messages])

    async def pull(self, model: str | None, on_progress: OnProgress | None) -> StoredModel:
        """Fetch a model over there."""
        from overspill.models.files import Progress
        from overspill.models.store import StoredModel

        call = self._stub.Pull(local_pb2.PullRequest(model=model), metadata=self._metadata)
        async with aclosing(self._messages(call)) as messages:
            async for event in messages:
                match event.WhichOneof("event"):
                    case "progress" if on_progress is not None:
                        on_progress(from_json(Progress, event.progress.json))
                    case "stored":
                        return from_json(StoredModel, event.stored.json)
                    case "error":
                        raise convert.error_from_proto(event.error)
        raise errors.StreamBroken("The daemon ended the pull without a word.", mend="Pull again.")

    async def _messages(self, call: Any) -> AsyncGenerator[Any]:
        """A stream's messages up to its end; leaving it cancels the call."""
        self._calls.add(call)
        try:
            while (message := await self._heard(call, at_end=None)) is not None:
                yield message
        finally:
            call.cancel()
            self._calls.discard(call)


def _route_of(events: list[local_pb2.StreamEvent]) -> RouteTaken | None:
    """The newest route that was told."""
    told = [event.route.json for event in events if event.HasField("route")]
    return from_json(RouteTaken, told[-1]) if told else None


def _piece(events: list[local_pb2.StreamEvent], taken: RouteTaken | None) -> ReplyChunk:
    if taken is None:
        raise errors.StreamBroken("The daemon began an answer without its route.")
    chunk = merge_chunks(chunk_of(event.event) for event in events)
    receipts = [event.receipt.json for event in events if event.HasField("receipt")]
    return ReplyChunk(
        route=taken,
        text=chunk.text,
        token_ids=chunk.token_ids,
        logprobs=chunk.logprobs,
        tool_calls=chunk.tool_calls,
        finish=chunk.finish,
        receipt=from_json(ReceiptRecord, receipts[0]) if receipts else None,
        tool_call_deltas=chunk.tool_call_deltas,
        reasoning=chunk.reasoning,
    )
