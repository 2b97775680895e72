"""The answering end of the `Local` service."""

from __future__ import annotations

import hmac
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio

from overspill import errors
from overspill._version import __version__
from overspill.engines.base import Engine
from overspill.engines.embedder import Embedder
from overspill.transport.base import is_local_address
from overspill.transport.local.connection import EngineConnection, embed_events
from overspill.transport.local.options import (
    ERROR_KEY,
    TOKEN_KEY,
    LocalOptions,
    bearer,
    channel_settings,
)
from overspill.types.embedding import EmbedReply
from overspill.wire import convert
from overspill.wire.v1 import chat_pb2, local_pb2, local_pb2_grpc


async def serve_local(
    served: Engine | Embedder, address: str, *, token: str, options: LocalOptions | None = None
) -> tuple[grpc.aio.Server, str]:
    """Serve an engine or an embedder; returns the server and the address with its real port.

    Callers must bring ``token``. Raises :class:`ConfigurationError` for an address that is not
    local, or that can't be bound.
    """
    options = options or LocalOptions()
    if not is_local_address(address):
        raise errors.ConfigurationError(
            f"{address} is not local: unsealed messages stay on this machine.",
            mend="Use a Unix socket or a loopback address.",
        )
    server = grpc.aio.server(options=channel_settings(options))
    local_pb2_grpc.add_LocalServicer_to_server(  # type: ignore[no-untyped-call]  # generated
        _Servicer(served, token, options), server
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

    def __init__(self, served: Engine | Embedder, token: str, options: LocalOptions) -> None:
        self._served = served
        self._token = token
        self._options = options

    async def Connect(
        self,
        orders: AsyncIterator[local_pb2.ConnectRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncGenerator[local_pb2.EventBatch]:
        """Answer everything that one caller asks."""
        await self._authenticate(context)
        connection = EngineConnection(await self._engine(context), self._options)
        async with aclosing(connection.run(orders)) as batches:
            async for batch in batches:
                yield batch

    async def CountTokens(
        self, message: chat_pb2.ChatRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> local_pb2.CountTokensResponse:
        """Count the prompt's tokens."""
        await self._authenticate(context)
        engine = await self._engine(context)
        try:
            request = convert.request_from_proto(message, local=True)
            count = await engine.count_prompt_tokens(request)
        except errors.OverspillError as error:
            await refuse(context, error)
        return local_pb2.CountTokensResponse(prompt_tokens=count)

    async def Embed(
        self, message: local_pb2.EmbedRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[local_pb2.EmbedEvent]:
        """Embed, with a heartbeat whenever that takes long."""
        await self._authenticate(context)
        served = self._served

        async def work() -> EmbedReply:
            if isinstance(served, Engine):
                raise errors.UnsupportedOption(f"{served.card.name} was opened to generate.")
            return await served.embed(convert.embed_request_from_proto(message))

        async def is_moving() -> bool:
            return (await served.health()).ok

        async with aclosing(embed_events(work, self._options, is_moving)) as events:
            async for event in events:
                yield event

    async def GetStatus(
        self, message: local_pb2.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> local_pb2.Status:
        """Say how the engine is."""
        await self._authenticate(context)
        health = await self._served.health()
        return local_pb2.Status(
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

    async def _engine(self, context: grpc.aio.ServicerContext[Any, Any]) -> Engine:
        if isinstance(self._served, Engine):
            return self._served
        name = self._served.card.name
        await refuse(context, errors.UnsupportedOption(f"{name} was opened for embeddings."))

    async def _authenticate(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        sent = dict(context.invocation_metadata() or ()).get(TOKEN_KEY, "")
        if not hmac.compare_digest(str(sent), bearer(self._token)):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")


async def refuse(
    context: grpc.aio.ServicerContext[Any, Any], error: errors.OverspillError
) -> NoReturn:
    """End a call with a typed error, for :func:`~overspill.transport.local.client.mapped`."""
    detail = convert.error_to_bytes(error)
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, error.message, ((ERROR_KEY, detail),))
    raise AssertionError("abort raises")
