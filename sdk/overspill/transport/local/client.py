"""The asking end of the `Local` service."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
import grpc.aio

from overspill import errors
from overspill.engines.base import EngineHealth
from overspill.transport.handshake import PeerGone
from overspill.transport.local.options import (
    ERROR_KEY,
    TOKEN_KEY,
    LocalOptions,
    LocalStatus,
    bearer,
    channel_settings,
)
from overspill.types.chat import Chunk, Request, merge_chunks
from overspill.types.embedding import EmbedReply, EmbedRequest
from overspill.wire import convert
from overspill.wire.v1 import chat_pb2, local_pb2, local_pb2_grpc

_T = TypeVar("_T")
RETIRING_LOOK_S = 0.2
_AN_ERROR = object()


class LocalClient:
    """Talks to a `Local` service; belongs to the event loop it is made on.

    Its errors are the other engine's own typed errors, and ``TransportError`` where the other
    side is gone, silent or refuses the token.
    """

    def __init__(self, address: str, *, token: str, options: LocalOptions | None = None) -> None:
        self._options = options or LocalOptions()
        self._address = address
        self._metadata = ((TOKEN_KEY, bearer(token)),)
        self._channel = grpc.aio.insecure_channel(address, options=channel_settings(self._options))
        self._stub = local_pb2_grpc.LocalStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._calls: set[grpc.aio.Call] = set()
        self._link: _Link | None = None

    async def chat(self, request: Request) -> AsyncGenerator[Chunk]:
        """The answer; leaving it cancels the work over there."""
        async with aclosing(self._events(request)) as batches:
            async for events in batches:
                yield merge_chunks(chunk_of(event.event) for event in events)

    async def _events(self, request: Request) -> AsyncGenerator[list[local_pb2.StreamEvent]]:
        """The answer's events, as many as came at a time; raises the one that is an error."""
        message = convert.request_to_proto(request, local=True)
        link = self._linked()
        answer = await link.start(request.id, message)
        try:
            ended = False
            while not ended:
                events = await answer.take()
                last = events[-1].event
                ended = last.HasField("final")
                if told := [e for e in events if not e.event.HasField("error")]:
                    yield told
                if last.HasField("error"):
                    raise convert.error_from_proto(last.error)
        finally:
            link.leave(answer)

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """The vectors, computed over there."""
        call: Any = self._stub.Embed(
            convert.embed_request_to_proto(request), metadata=self._metadata
        )
        self._calls.add(call)
        found: list[local_pb2.Embedding] = []
        try:
            while True:
                event = await self._heard(call)
                match event.WhichOneof("event"):
                    case "embedding":
                        found.append(event.embedding)
                    case "end":
                        return convert.embed_reply_from_proto(found, event.end)
                    case "error":
                        raise convert.error_from_proto(event.error)
        finally:
            call.cancel()
            self._calls.discard(call)

    async def count_tokens(self, request: Request) -> int | None:
        """Tokens of the request's prompt; None where the other side doesn't know."""
        message = convert.request_to_proto(request, local=True)
        answer = await self._unary(self._stub.CountTokens, message)
        return answer.prompt_tokens if answer.HasField("prompt_tokens") else None

    async def status(self, timeout_s: float | None = None) -> LocalStatus:
        """Health, card and version of the other side."""
        answer = await self._unary(
            self._stub.GetStatus, local_pb2.GetStatusRequest(), timeout_s=timeout_s
        )
        return LocalStatus(
            EngineHealth(
                answer.ok,
                answer.detail,
                answer.active,
                answer.queued,
                answer.drafted_tokens,
                answer.accepted_tokens,
                tuple(answer.notes),
            ),
            convert.card_from_proto(answer.card),
            answer.version,
        )

    def queue_position(self, request_id: str) -> int | None:
        """The last position that the other side told; None when it isn't queued."""
        return None if self._link is None else self._link.queue_position(request_id)

    async def aclose(self) -> None:
        """Cancel every call and close the connection."""
        link, self._link = self._link, None
        if link is not None:
            await link.aclose()
        for call in tuple(self._calls):
            call.cancel()
        await self._channel.close()

    async def retire(self) -> None:
        """Close once all that runs has ended; nothing new is asked here."""
        while self._calls or (self._link is not None and self._link.is_busy):  # noqa: ASYNC110
            # Calls and answers end in several places; nobody waits for this.
            await asyncio.sleep(RETIRING_LOOK_S)
        await self.aclose()

    def _linked(self) -> _Link:
        if self._link is None or self._link.is_broken:
            call = self._stub.Connect(metadata=self._metadata)
            self._link = _Link(call, self._address, self._options)
        return self._link

    async def _heard(self, call: Any, at_end: Any = _AN_ERROR) -> Any:
        """The next message of a stream; raises where it breaks or stays silent, and where it ends
        unless there is an answer for that."""
        try:
            async with asyncio.timeout(self._options.silence_s):
                event = await call.read()
        except grpc.aio.AioRpcError as error:
            raise mapped(error, self._address, begun=False) from error
        except TimeoutError:
            why = f"silent for {self._options.silence_s:g} s"
            raise broken(self._address, why, begun=False) from None
        except asyncio.CancelledError:
            if _we_left():
                raise
            raise broken(self._address, "it ended the call", begun=False) from None
        if event is not grpc.aio.EOF:
            return event
        if at_end is _AN_ERROR:
            raise broken(self._address, "it stopped without an end", begun=False)
        return at_end

    async def _unary(
        self, method: Callable[..., Awaitable[_T]], message: Any, timeout_s: float | None = None
    ) -> _T:
        timeout_s = timeout_s or self._options.call_timeout_s
        call: Any = method(message, timeout=timeout_s, metadata=self._metadata)
        self._calls.add(call)
        try:
            answer: _T = await call
            return answer
        except grpc.aio.AioRpcError as error:
            raise mapped(error, self._address, begun=False) from error
        except asyncio.CancelledError:
            if _we_left():
                raise
            raise broken(self._address, "it ended the call", begun=False) from None
        finally:
            call.cancel()
            self._calls.discard(call)


def chunk_of(event: chat_pb2.ChatEvent) -> Chunk:
    """What an event adds to an answer, or its end."""
    if event.HasField("final"):
        return Chunk(finish=convert.final_to_finish(event.final))
    return convert.delta_to_chunk(event.delta)


class _Answer:
    """The events of one stream that came and were not read yet.

    The connection is read whoever reads an answer, so a slow reader stalls nobody; he gets all
    that gathered meanwhile as one chunk, and what is held grows with his answer alone.
    """

    def __init__(self, number: int, request_id: str) -> None:
        self.number = number
        self.request_id = request_id
        self.begun = False
        self.position: int | None = None
        self._events: list[local_pb2.StreamEvent] = []
        self._failure: errors.OverspillError | None = None
        self._ready = asyncio.Event()

    def put(self, event: local_pb2.StreamEvent) -> None:
        """One more event; a heartbeat only tells the position."""
        if event.event.HasField("heartbeat"):
            self.position = event.event.heartbeat.queue_position
            return
        self.begun, self.position = True, None
        self._events.append(event)
        self._ready.set()

    def fail(self, error: errors.OverspillError) -> None:
        """The connection is gone; what came before is still read first."""
        self._failure = self._failure or error
        self._ready.set()

    async def take(self) -> list[local_pb2.StreamEvent]:
        """All events that came, at least one, of which only the last can be the end; raises what
        broke the connection."""
        while not self._events:
            if self._failure is not None:
                raise self._failure
            self._ready.clear()
            await self._ready.wait()
        events, self._events = self._events, []
        return events


class _Link:
    """One ``Connect`` call, shared by all answers: a reader hands out what comes.

    Any message is a sign of life. With answers due and none for ``silence_s`` all of them break.
    """

    def __init__(self, call: Any, address: str, options: LocalOptions) -> None:
        self._call = call
        self._address = address
        self._options = options
        self._answers: dict[int, _Answer] = {}
        self._numbers = itertools.count(1)
        self._writing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._reader = asyncio.create_task(self._read())
        self._watch = asyncio.create_task(self._watch_silence())
        self._writes: set[asyncio.Task[None]] = set()
        self.is_broken = False

    async def start(self, request_id: str, message: chat_pb2.ChatRequest) -> _Answer:
        """Ask; the answer's events come by themselves."""
        answer = _Answer(next(self._numbers), request_id)
        if not self._answers:
            self._heard_at = self._loop.time()
        self._answers[answer.number] = answer
        order = local_pb2.ConnectRequest(stream=answer.number, start=message)
        try:
            # Who leaves while it is written leaves alone: gRPC would cancel the whole call.
            await asyncio.shield(self._keep(asyncio.create_task(self._write(order))))
        except BaseException:
            self.leave(answer)
            raise
        return answer

    def leave(self, answer: _Answer) -> None:
        """Stop the work over there, unless it has ended."""
        if self._answers.pop(answer.number, None) is None or self.is_broken:
            return
        order = local_pb2.ConnectRequest(stream=answer.number, cancel=local_pb2.Cancel())
        self._keep(asyncio.create_task(self._write_quietly(order)))

    def _keep(self, writing: asyncio.Task[None]) -> asyncio.Task[None]:
        self._writes.add(writing)
        writing.add_done_callback(self._writes.discard)
        return writing

    @property
    def is_busy(self) -> bool:
        """Whether an answer is awaited on it."""
        return bool(self._answers) and not self.is_broken

    def queue_position(self, request_id: str) -> int | None:
        """As last told."""
        answers = (a for a in self._answers.values() if a.request_id == request_id)
        return next((answer.position for answer in answers), None)

    async def aclose(self) -> None:
        """End the call and everything on it."""
        self._break("it was closed")
        tasks = {self._reader, self._watch, *self._writes}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _write(self, order: local_pb2.ConnectRequest) -> None:
        try:
            async with self._writing:
                await self._call.write(order)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _we_left():
                raise
            # The reader learns why, and tells everybody.
            await asyncio.wait({self._reader})

    async def _write_quietly(self, order: local_pb2.ConnectRequest) -> None:
        if not self.is_broken:
            await self._write(order)

    async def _read(self) -> None:
        try:
            while (batch := await self._call.read()) is not grpc.aio.EOF:
                self._heard_at = self._loop.time()
                self._hand_out_all(batch)
            self._break("it ended the call", await _status_of(self._call))
        except grpc.aio.AioRpcError as error:
            self._break("", error)
        except asyncio.CancelledError:
            self._break("it ended the call")
            if _we_left():
                raise

    def _hand_out_all(self, batch: local_pb2.EventBatch) -> None:
        for event in batch.events:
            self._hand_out(event)

    def _hand_out(self, event: local_pb2.StreamEvent) -> None:
        answer = self._answers.get(event.stream)
        if answer is None:
            return
        answer.put(event)
        if event.event.WhichOneof("event") in ("final", "error"):
            # It has ended over there: nothing is left to cancel.
            del self._answers[event.stream]

    def _break(self, why: str, error: grpc.aio.AioRpcError | None = None) -> None:
        if self.is_broken:
            return
        self.is_broken = True
        for answer in self._answers.values():
            if error is None:
                answer.fail(broken(self._address, why, begun=answer.begun))
            else:
                answer.fail(mapped(error, self._address, begun=answer.begun))
        self._call.cancel()

    async def _watch_silence(self) -> None:
        limit_s = self._options.silence_s
        while not self.is_broken:
            await asyncio.sleep(limit_s / 8)
            if self._answers and self._loop.time() - self._heard_at > limit_s:
                self._break(f"silent for {limit_s:g} s")


async def _status_of(call: Any) -> grpc.aio.AioRpcError | None:
    """Why a call ended, where that was no good end."""
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return None
    return grpc.aio.AioRpcError(
        code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


def mapped(error: grpc.aio.AioRpcError, address: str, *, begun: bool) -> errors.OverspillError:
    """The other side's own typed error, or a broken road."""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY and isinstance(value, bytes):
            return convert.error_from_bytes(value)
    detail = (error.details() or "no detail").splitlines()[0]
    return broken(address, f"{error.code().name}: {detail}", begun=begun)


def broken(address: str, why: str, *, begun: bool) -> errors.TransportError:
    """Nobody answered, or an answer broke off."""
    if begun:
        return errors.StreamBroken(f"The stream from {address} broke ({why}).")
    return PeerGone(f"No answer from {address} ({why}).")


def _we_left() -> bool:
    """Whether a CancelledError is our task's own, not a status of the peer's dressed as one."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
