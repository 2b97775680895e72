"""The parent's end of a worker's socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial

from overspill import errors
from overspill.engines.base import EngineHealth
from overspill.transport.local.answers import Answer, Answers, broken, chunk_of
from overspill.transport.local.framing import Frames
from overspill.transport.local.options import LocalOptions, LocalStatus
from overspill.types.chat import Chunk, Request, merge_chunks
from overspill.types.embedding import EmbedReply, EmbedRequest
from overspill.wire import convert
from overspill.wire.v1 import local_pb2


class WorkerClient:
    """Asks a worker; belongs to the event loop that it was connected on.

    Its errors are the engine's own typed errors, and ``TransportError`` where the worker is gone,
    silent or refuses the token.
    """

    def __init__(self, address: str, options: LocalOptions) -> None:
        self._address = address
        self._options = options
        self._answers = Answers()
        self._why_lost: str | None = None
        self._watch: asyncio.Task[None] | None = None
        self._frames = Frames(self._heard, self._lost, options.max_message_bytes)

    @classmethod
    async def connect(
        cls, address: str, *, token: str, options: LocalOptions | None = None
    ) -> WorkerClient:
        """Connect to ``unix:PATH`` or ``127.0.0.1:PORT``, and prove with ``token`` who asks.

        Raises ``TransportError`` where nobody listens.
        """
        self = cls(address, options or LocalOptions())
        loop = asyncio.get_running_loop()
        try:
            if address.startswith("unix:"):
                path = address.removeprefix("unix:")
                await loop.create_unix_connection(lambda: self._frames, path)
            else:
                host, _, port = address.rpartition(":")
                await loop.create_connection(lambda: self._frames, host, int(port))
        except OSError as error:
            raise broken(address, str(error), begun=False) from error
        self._frames.write(token.encode())
        self._watch = asyncio.create_task(self._watch_silence())
        return self

    async def chat(self, request: Request) -> AsyncGenerator[Chunk]:
        """The answer; leaving it cancels the work over there."""
        start = convert.request_to_proto(request, local=True)
        answer = self._ask(local_pb2.ConnectRequest(start=start), request.id)
        try:
            while True:
                events = [event.event for event in await answer.take()]
                failure = events.pop().error if events[-1].HasField("error") else None
                if events:
                    chunk = merge_chunks(map(chunk_of, events))
                    yield chunk
                    if chunk.finish is not None:
                        return
                if failure is not None:
                    raise convert.error_from_proto(failure)
        finally:
            self._leave(answer)

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """The vectors, computed over there."""
        order = local_pb2.ConnectRequest(embed=convert.embed_request_to_proto(request))
        answer = self._ask(order, request.id)
        found: list[local_pb2.Embedding] = []
        try:
            while True:
                for event in await answer.take():
                    match event.embed.WhichOneof("event"):
                        case "embedding":
                            found.append(event.embed.embedding)
                        case "end":
                            return convert.embed_reply_from_proto(found, event.embed.end)
                        case "error":
                            raise convert.error_from_proto(event.embed.error)
        finally:
            self._leave(answer)

    async def count_tokens(self, request: Request) -> int | None:
        """Tokens of the request's prompt; None where the engine doesn't know."""
        message = convert.request_to_proto(request, local=True)
        counted = (await self._one(local_pb2.ConnectRequest(count_tokens=message))).counted
        return counted.prompt_tokens if counted.HasField("prompt_tokens") else None

    async def status(self, timeout_s: float | None = None) -> LocalStatus:
        """Health, card and version of the other side."""
        order = local_pb2.ConnectRequest(get_status=local_pb2.GetStatusRequest())
        told = (await self._one(order, timeout_s)).status
        health = EngineHealth(
            told.ok,
            told.detail,
            told.active,
            told.queued,
            told.drafted_tokens,
            told.accepted_tokens,
            tuple(told.notes),
        )
        return LocalStatus(health, convert.card_from_proto(told.card), told.version)

    def queue_position(self, request_id: str) -> int | None:
        """The last position that the other side told; None when it isn't queued."""
        return self._answers.queue_position(request_id)

    async def aclose(self) -> None:
        """Close the connection, which cancels all work over there."""
        if self._watch is not None:
            self._watch.cancel()
        self._frames.cut("it was closed")
        self._lost("it was closed")

    # ------------------------------------------------------------------------------------------

    def _ask(self, order: local_pb2.ConnectRequest, request_id: str = "") -> Answer:
        if self._why_lost is not None:
            raise broken(self._address, self._why_lost, begun=False)
        answer = self._answers.begin(request_id)
        order.stream = answer.number
        message = order.SerializeToString()
        if len(message) > self._options.max_message_bytes:
            self._answers.forget(answer)
            raise errors.InvalidRequest(
                f"The request has {len(message)} bytes; {self._options.max_message_bytes} are "
                "the most that an engine is handed.",
                mend="Send less.",
            )
        self._frames.write(message)
        return answer

    def _leave(self, answer: Answer) -> None:
        """Stop the work over there, unless it has ended."""
        if self._answers.forget(answer) and self._why_lost is None:
            order = local_pb2.ConnectRequest(stream=answer.number, cancel=local_pb2.Cancel())
            self._frames.write(order.SerializeToString())

    async def _one(
        self, order: local_pb2.ConnectRequest, timeout_s: float | None = None
    ) -> local_pb2.StreamEvent:
        """The only event that answers an order."""
        timeout_s = timeout_s or self._options.call_timeout_s
        answer = self._ask(order)
        try:
            async with asyncio.timeout(timeout_s):
                (event,) = await answer.take()
        except TimeoutError:
            raise broken(self._address, f"silent for {timeout_s:g} s", begun=False) from None
        finally:
            self._leave(answer)
        if event.event.HasField("error"):
            raise convert.error_from_proto(event.event.error)
        return event

    def _heard(self, message: bytes) -> None:
        self._answers.hand_out(local_pb2.EventBatch.FromString(message))

    def _lost(self, why: str) -> None:
        if self._why_lost is None:
            self._why_lost = why
            self._answers.fail(partial(self._broken, why))

    def _broken(self, why: str, begun: bool) -> errors.TransportError:
        return broken(self._address, why, begun=begun)

    async def _watch_silence(self) -> None:
        await self._answers.silence(self._options.silence_s)
        self._lost(f"silent for {self._options.silence_s:g} s")
        self._frames.cut("silent")
