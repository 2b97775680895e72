"""The unsealed `Local` service: an engine behind a Unix socket or authenticated loopback.

The worker and the daemon speak it; it never crosses a network. Both ends are here: ``serve_local``
puts an engine behind an address, ``LocalClient`` talks to one. Every call is owned and cancelled
when its stream is left: since grpcio 1.83 an abandoned aio call is never cancelled (grpc #43462).
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from overspill import errors
from overspill._version import __version__
from overspill.engines.base import Engine, EngineHealth
from overspill.transport.base import is_local_address
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Request
from overspill.wire import convert
from overspill.wire.v1 import chat_pb2, local_pb2, local_pb2_grpc

_T = TypeVar("_T")
_TOKEN = "authorization"  # noqa: S105 - the name of a header, not a secret
_ERROR = "overspill-error-bin"


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """``silence_s``: a stream without any event for so long, heartbeats included, is broken."""

    heartbeat_s: float = 2.0
    silence_s: float = 10.0
    call_timeout_s: float = 30.0
    max_message_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class LocalStatus:
    """What the other side says of itself."""

    health: EngineHealth
    card: ModelCard
    version: str


# --- server -------------------------------------------------------------------------------------


async def serve_local(
    engine: Engine, address: str, *, token: str, options: LocalOptions | None = None
) -> tuple[grpc.aio.Server, str]:
    """Serve an engine; returns the server and the address with its real port.

    Callers must bring ``token``. Raises :class:`ConfigurationError` for an address that is not
    local, or that can't be bound.
    """
    options = options or LocalOptions()
    if not is_local_address(address):
        raise errors.ConfigurationError(
            f"{address} is not local: unsealed messages stay on this machine.",
            mend="Use a Unix socket or a loopback address.",
        )
    server = grpc.aio.server(options=_settings(options))
    local_pb2_grpc.add_LocalServicer_to_server(  # type: ignore[no-untyped-call]  # generated
        _Servicer(engine, token, options), server
    )
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise errors.ConfigurationError(
            f"Cannot listen on {address}.", mend="Is it in use, or its folder missing?"
        ) from error
    await server.start()
    if address.startswith("unix:"):
        return server, address
    return server, f"{address.rpartition(':')[0]}:{port}"


class _Servicer(local_pb2_grpc.LocalServicer):
    """Translates and delegates."""

    def __init__(self, engine: Engine, token: str, options: LocalOptions) -> None:
        self._engine = engine
        self._token = token
        self._options = options

    async def Chat(
        self, message: chat_pb2.ChatRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[chat_pb2.ChatEvent]:
        """Answer, with a heartbeat whenever there is nothing to say."""
        await self._authenticate(context)
        numbers = itertools.count()
        try:
            request = convert.request_from_proto(message, local=True)
            async with (
                aclosing(self._engine.generate(request)) as chunks,
                aclosing(self._with_heartbeats(chunks)) as beaten,
            ):
                async for chunk in beaten:
                    for event in self._events(chunk, request.id):
                        event.seq = next(numbers)
                        yield event
        except errors.OverspillError as error:
            yield chat_pb2.ChatEvent(seq=next(numbers), error=convert.error_to_proto(error))

    async def CountTokens(
        self, message: chat_pb2.ChatRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> local_pb2.CountTokensResponse:
        """Count the prompt's tokens."""
        await self._authenticate(context)
        try:
            request = convert.request_from_proto(message, local=True)
            count = await self._engine.count_prompt_tokens(request)
        except errors.OverspillError as error:
            detail = convert.error_to_bytes(error)
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, error.message, ((_ERROR, detail),)
            )
        return local_pb2.CountTokensResponse(prompt_tokens=count)

    async def GetStatus(
        self, message: local_pb2.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> local_pb2.Status:
        """Say how the engine is."""
        await self._authenticate(context)
        health = await self._engine.health()
        return local_pb2.Status(
            ok=health.ok,
            detail=health.detail,
            active=health.active,
            queued=health.queued,
            card=convert.card_to_proto(self._engine.card, local=True),
            version=__version__,
        )

    async def _authenticate(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        sent = dict(context.invocation_metadata() or ()).get(_TOKEN, "")
        if not hmac.compare_digest(str(sent), f"Bearer {self._token}"):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")

    def _events(self, chunk: Chunk | None, request_id: str) -> list[chat_pb2.ChatEvent]:
        if chunk is None:
            position = self._engine.queue_position(request_id) or 0
            return [chat_pb2.ChatEvent(heartbeat=chat_pb2.Heartbeat(queue_position=position))]
        events = []
        if delta := convert.chunk_to_delta(chunk):
            events.append(chat_pb2.ChatEvent(delta=delta))
        if chunk.finish is not None:
            events.append(chat_pb2.ChatEvent(final=convert.finish_to_final(chunk.finish)))
        return events

    async def _with_heartbeats(self, chunks: AsyncIterator[Chunk]) -> AsyncGenerator[Chunk | None]:
        """The chunks; None where a heartbeat is due. A stuck engine gives no heartbeat."""
        waiting: asyncio.Task[Chunk] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(_next(chunks))
                done, _ = await asyncio.wait({waiting}, timeout=self._options.heartbeat_s)
                if not done:
                    if (await self._engine.health()).ok:
                        yield None
                    continue
                chunk, waiting = await waiting, None
                yield chunk
                if chunk.finish is not None:
                    return
        finally:
            if waiting is not None:
                waiting.cancel()
                await asyncio.wait({waiting})


async def _next(chunks: AsyncIterator[Chunk]) -> Chunk:
    try:
        return await anext(chunks)
    except StopAsyncIteration:
        # A task may not raise StopAsyncIteration; Engine.generate never ends without a finish.
        raise errors.EngineError("The stream stopped without an end.") from None


# --- client -------------------------------------------------------------------------------------


class LocalClient:
    """Talks to a `Local` service; belongs to the event loop it is made on.

    Its errors are the other engine's own typed errors, and ``TransportError`` where the other
    side is gone, silent or refuses the token.
    """

    def __init__(self, address: str, *, token: str, options: LocalOptions | None = None) -> None:
        self._options = options or LocalOptions()
        self._address = address
        self._metadata = ((_TOKEN, f"Bearer {token}"),)
        self._channel = grpc.aio.insecure_channel(address, options=_settings(self._options))
        self._stub = local_pb2_grpc.LocalStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._calls: set[grpc.aio.Call] = set()
        self._positions: dict[str, int] = {}

    async def chat(self, request: Request) -> AsyncGenerator[Chunk]:
        """The answer's chunks; closing the generator cancels the work over there."""
        call = self._stub.Chat(
            convert.request_to_proto(request, local=True), metadata=self._metadata
        )
        self._calls.add(call)
        try:
            async with aclosing(self._events(call)) as events:
                async for event in events:
                    chunk = self._chunk(event, request.id)
                    if chunk is not None:
                        yield chunk
        finally:
            call.cancel()
            self._calls.discard(call)
            self._positions.pop(request.id, None)

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
            EngineHealth(answer.ok, answer.detail, answer.active, answer.queued),
            convert.card_from_proto(answer.card),
            answer.version,
        )

    def queue_position(self, request_id: str) -> int | None:
        """The last position that the other side told; None when it isn't queued."""
        return self._positions.get(request_id)

    async def aclose(self) -> None:
        """Cancel every call and close the connection."""
        for call in tuple(self._calls):
            call.cancel()
        await self._channel.close()

    async def _events(self, call: Any) -> AsyncGenerator[chat_pb2.ChatEvent]:
        begun = False
        try:
            while True:
                async with asyncio.timeout(self._options.silence_s):
                    event = await call.read()
                if event is grpc.aio.EOF:
                    return
                yield event
                begun = True
        except grpc.aio.AioRpcError as error:
            raise self._mapped(error, begun=begun) from error
        except TimeoutError:
            raise self._broken(f"silent for {self._options.silence_s:g} s", begun) from None
        except asyncio.CancelledError:
            if _we_left():
                raise
            raise self._broken("it ended the call", begun) from None

    def _chunk(self, event: chat_pb2.ChatEvent, request_id: str) -> Chunk | None:
        match event.WhichOneof("event"):
            case "delta":
                return convert.delta_to_chunk(event.delta)
            case "final":
                return Chunk(finish=convert.final_to_finish(event.final))
            case "error":
                raise convert.error_from_proto(event.error)
            case "heartbeat":
                self._positions[request_id] = event.heartbeat.queue_position
        return None

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
            raise self._mapped(error, begun=False) from error
        except asyncio.CancelledError:
            if _we_left():
                raise
            raise self._broken("it ended the call", False) from None
        finally:
            call.cancel()
            self._calls.discard(call)

    def _mapped(self, error: grpc.aio.AioRpcError, *, begun: bool) -> errors.OverspillError:
        for key, value in error.trailing_metadata() or ():
            if key == _ERROR and isinstance(value, bytes):
                return convert.error_from_bytes(value)
        detail = (error.details() or "no detail").splitlines()[0]
        return self._broken(f"{error.code().name}: {detail}", begun)

    def _broken(self, why: str, begun: bool) -> errors.TransportError:
        if begun:
            return errors.StreamBroken(f"The stream from {self._address} broke ({why}).")
        return errors.ConnectFailed(f"No answer from {self._address} ({why}).")


def _settings(options: LocalOptions) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.enable_http_proxy", 0),
        # A restarted peer is another peer: no connection, and no backoff, outlives a client.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.so_reuseport", 0),
    ]


def _we_left() -> bool:
    """Whether a CancelledError is our task's own, not a status of the peer's dressed as one."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
