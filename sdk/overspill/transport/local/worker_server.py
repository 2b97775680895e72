"""The worker's end of its socket: one engine or embedder answers."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator
from contextlib import aclosing

from google.protobuf.message import DecodeError

from overspill import errors
from overspill._version import __version__
from overspill.engines.base import Engine
from overspill.engines.embedder import Embedder
from overspill.transport.base import is_local_address
from overspill.transport.local.connection import Connection, chunk_events, embed_events
from overspill.transport.local.framing import Frames
from overspill.transport.local.options import LocalOptions
from overspill.types.embedding import EmbedReply
from overspill.wire import convert
from overspill.wire.v1 import chat_pb2, local_pb2

_MAX_TOKEN_BYTES = 256
_TOKEN_TIMEOUT_S = 5.0


async def serve_worker(
    served: Engine | Embedder, address: str, *, token: str, options: LocalOptions | None = None
) -> tuple[asyncio.Server, str]:
    """Serve an engine or an embedder; returns the server and the address with its real port.

    The first message of a connection has to be ``token``. Raises :class:`ConfigurationError` for
    an address that is not local, or that can't be bound.
    """
    options = options or LocalOptions()
    if not is_local_address(address):
        raise errors.ConfigurationError(
            f"{address} is not local: unsealed messages stay on this machine.",
            mend="Use a Unix socket or a loopback address.",
        )

    def accept() -> Frames:
        return _Door(served, token, options).frames

    loop = asyncio.get_running_loop()
    try:
        if address.startswith("unix:"):
            return await loop.create_unix_server(accept, address.removeprefix("unix:")), address
        host, _, port = address.rpartition(":")
        server = await loop.create_server(accept, host, int(port))
    except OSError as error:
        raise errors.ConfigurationError(
            f"Cannot listen on {address}.", mend="Is it in use, or its folder missing?"
        ) from error
    return server, f"{host}:{server.sockets[0].getsockname()[1]}"


class _Door:
    """One connection: nothing that comes is read before the token was shown."""

    def __init__(self, served: Engine | Embedder, token: str, options: LocalOptions) -> None:
        self._served = served
        self._token = token
        self._options = options
        self._connection: WorkerConnection | None = None
        self.frames = Frames(self._heard, self._lost, _MAX_TOKEN_BYTES)
        self._patience = asyncio.get_running_loop().call_later(
            _TOKEN_TIMEOUT_S, lambda: self.frames.cut("no token came")
        )

    def _heard(self, message: bytes) -> None:
        if self._connection is None:
            self._let_in(message)
            return
        try:
            self._connection.take(local_pb2.ConnectRequest.FromString(message))
        except DecodeError:
            self.frames.cut("no order could be read")

    def _let_in(self, shown: bytes) -> None:
        self._patience.cancel()
        if not hmac.compare_digest(shown, self._token.encode()):
            self.frames.cut("the token is wrong")
            return
        self.frames.max_bytes = self._options.max_message_bytes
        self._connection = WorkerConnection(self._served, self.frames, self._options)

    def _lost(self, why: str) -> None:
        self._patience.cancel()
        if self._connection is not None:
            self._connection.end()


class WorkerConnection(Connection):
    """All that the parent asks; what a step gives to all streams leaves as one message."""

    def __init__(self, served: Engine | Embedder, frames: Frames, options: LocalOptions) -> None:
        super().__init__(options)
        self._served = served
        self._frames = frames
        self._frames.on_room = self._wake
        self._is_waking = False
        self._loop = asyncio.get_running_loop()
        self._beating = asyncio.create_task(self._beat())

    def end(self) -> None:
        """The parent is gone: nobody wants the answers."""
        for task in (self._beating, *self._answers.values()):
            task.cancel()

    def _wake(self) -> None:
        if not self._is_waking:
            self._is_waking = True
            # Behind the streams that are about to give theirs.
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._is_waking = False
        if self._frames.is_full or self._frames.is_closing:
            return
        if (batch := self._due()) is not None:
            self._frames.write(batch.SerializeToString())

    async def _is_moving(self) -> bool:
        return (await self._served.health()).ok

    def _queue_position(self, request_id: str) -> int | None:
        return self._served.queue_position(request_id) if isinstance(self._served, Engine) else None

    def _answer_to(self, order: local_pb2.ConnectRequest) -> AsyncGenerator[local_pb2.StreamEvent]:
        match order.WhichOneof("order"):
            case "count_tokens":
                return self._count(order.count_tokens)
            case "embed":
                return self._embed(order.embed)
            case "get_status":
                return self._status()
            case _:
                return super()._answer_to(order)

    async def _events(self, message: chat_pb2.ChatRequest) -> AsyncGenerator[local_pb2.StreamEvent]:
        request = convert.request_from_proto(message, local=True)
        async with aclosing(self._engine.generate(request)) as chunks:
            async for chunk in chunks:
                for event in chunk_events(chunk):
                    yield local_pb2.StreamEvent(event=event)

    async def _count(self, message: chat_pb2.ChatRequest) -> AsyncGenerator[local_pb2.StreamEvent]:
        request = convert.request_from_proto(message, local=True)
        count = await self._engine.count_prompt_tokens(request)
        yield local_pb2.StreamEvent(counted=local_pb2.CountTokensResponse(prompt_tokens=count))

    async def _embed(
        self, message: local_pb2.EmbedRequest
    ) -> AsyncGenerator[local_pb2.StreamEvent]:
        async def work() -> EmbedReply:
            if isinstance(self._served, Engine):
                raise errors.UnsupportedOption(f"{self._served.card.name} was opened to generate.")
            return await self._served.embed(convert.embed_request_from_proto(message))

        async with aclosing(embed_events(work, self._options, self._is_moving)) as events:
            async for event in events:
                yield local_pb2.StreamEvent(embed=event)

    async def _status(self) -> AsyncGenerator[local_pb2.StreamEvent]:
        health = await self._served.health()
        status = local_pb2.Status(
            ok=health.ok,
            detail=health.detail,
            active=health.active,
            queued=health.queued,
            card=convert.card_to_proto(self._served.card, local=True),
            version=__version__,
            drafted_tokens=health.drafted_tokens,
            accepted_tokens=health.accepted_tokens,
            notes=health.notes,
        )
        yield local_pb2.StreamEvent(status=status)

    @property
    def _engine(self) -> Engine:
        if isinstance(self._served, Engine):
            return self._served
        raise errors.UnsupportedOption(f"{self._served.card.name} was opened for embeddings.")
