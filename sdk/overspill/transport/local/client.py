"""The asking end of the `Local` service, as far as it is the same for whoever asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from overspill import errors
from overspill.transport.local.answers import Answer, Answers, broken
from overspill.transport.local.grpc_errors import mapped
from overspill.transport.local.options import TOKEN_KEY, LocalOptions, bearer, channel_settings
from overspill.types.chat import Request
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


class _Link:
    """One ``Connect`` call, shared by all answers: a reader hands out what comes.

    Any message is a sign of life. With answers due and none for ``silence_s`` all of them break.
    """

    def __init__(self, call: Any, address: str, options: LocalOptions) -> None:
        self._call = call
        self._address = address
        self._options = options
        self._answers = Answers()
        self._writing = asyncio.Lock()
        self._reader = asyncio.create_task(self._read())
        self._watch = asyncio.create_task(self._watch_silence())
        self._writes: set[asyncio.Task[None]] = set()
        self.is_broken = False

    async def start(self, request_id: str, message: chat_pb2.ChatRequest) -> Answer:
        """Ask; the answer's events come by themselves."""
        answer = self._answers.begin(request_id)
        order = local_pb2.ConnectRequest(stream=answer.number, start=message)
        try:
            # Who leaves while it is written leaves alone: gRPC would cancel the whole call.
            await asyncio.shield(self._keep(asyncio.create_task(self._write(order))))
        except BaseException:
            self.leave(answer)
            raise
        return answer

    def leave(self, answer: Answer) -> None:
        """Stop the work over there, unless it has ended."""
        if self._answers.forget(answer) and not self.is_broken:
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
        return self._answers.queue_position(request_id)

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
                self._answers.hand_out(batch)
            self._break("it ended the call", await _status_of(self._call))
        except grpc.aio.AioRpcError as error:
            self._break("", error)
        except asyncio.CancelledError:
            self._break("it ended the call")
            if _we_left():
                raise

    def _break(self, why: str, error: grpc.aio.AioRpcError | None = None) -> None:
        if self.is_broken:
            return
        self.is_broken = True

        def error_of(begun: bool) -> errors.OverspillError:
            if error is None:
                return broken(self._address, why, begun=begun)
            return mapped(error, self._address, begun=begun)

        self._answers.fail(error_of)
        self._call.cancel()

    async def _watch_silence(self) -> None:
        limit_s = self._options.silence_s
        await self._answers.silence(limit_s)
        self._break(f"silent for {limit_s:g} s")


async def _status_of(call: Any) -> grpc.aio.AioRpcError | None:
    """Why a call ended, where that was no good end."""
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return None
    return grpc.aio.AioRpcError(
        code, await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


def _we_left() -> bool:
    """Whether a CancelledError is our task's own, not a status of the peer's dressed as one."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
