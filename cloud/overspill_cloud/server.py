"""The node on gRPC: servicers translate and delegate, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio

from overspill.errors import (
    BusyError,
    ConfigurationError,
    InvalidRequest,
    KeyUnknown,
    OverspillError,
)
from overspill.transport.base import SealedHead
from overspill.types.evidence import EvidenceBundle
from overspill.wire import convert
from overspill.wire.v1 import sealed_pb2, sealed_pb2_grpc, trust_pb2, trust_pb2_grpc
from overspill_cloud import events
from overspill_cloud.certificates import TlsFiles, server_credentials
from overspill_cloud.guard import Guard
from overspill_cloud.health import Health, health_handler
from overspill_cloud.node import Node
from overspill_cloud.writing import Writer, writing

HALF_CLOSE_TIMEOUT_S = 2.0
HEAD_TIMEOUT_S = 10.0
"""A call whose first message has not come by then never sends."""
NONCE_WAIT_S = 2.0
"""The response nonce goes with the first frames, or alone when they take longer."""
HANDSHAKE_TIMEOUT_MS = 10_000
IDLE_CONNECTION_MS = 300_000
CONNECTION_AGE_MS = 3_600_000
CONNECTION_GRACE_MS = 600_000
"""A connection is given up after its age, and cut after the grace: what a client never reads is
kept for no longer. Whoever still streams then resumes over the next one."""
MAX_CALLS = 4096
"""Of all kinds, at once: what comes beyond is refused before anything is allocated for it."""
MAX_CONNECTION_CALLS = 1024
"""Of one connection: what comes beyond waits at the client."""
MAX_MESSAGE_BYTES = (1 << 20) + (1 << 16)
_Context = grpc.aio.ServicerContext[Any, Any]
_Open = Callable[[SealedHead, AsyncIterator[bytes]], AsyncGenerator[Sequence[bytes]]]


class TrustServicer(trust_pb2_grpc.TrustServicer):
    """Evidence and cards."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def GetBundle(  # noqa: D102 - the service's own names
        self, request: trust_pb2.GetBundleRequest, context: _Context
    ) -> trust_pb2.EvidenceBundle:
        return _bundle(await self._node.get_bundle())

    async def Challenge(  # noqa: D102
        self, request: trust_pb2.ChallengeRequest, context: _Context
    ) -> trust_pb2.EvidenceBundle:
        return _bundle(await self._node.challenge(request.nonce))

    async def GetCards(  # noqa: D102
        self, request: trust_pb2.GetCardsRequest, context: _Context
    ) -> trust_pb2.SignedCards:
        cards, signature = await self._node.get_cards()
        return trust_pb2.SignedCards(cards=cards, signature=signature)


class FleetServicer(trust_pb2_grpc.FleetServicer):
    """Where the other replicas are."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def Locate(  # noqa: D102
        self, request: trust_pb2.LocateRequest, context: _Context
    ) -> trust_pb2.SignedReplicas:
        replicas, signature = await self._node.locate()
        return trust_pb2.SignedReplicas(replicas=replicas, signature=signature)


class SealedServicer(sealed_pb2_grpc.SealedServicer):
    """Sealed streams. Coroutines, not generators: a cancelled generator would only be closed by
    the garbage collector."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def Chat(  # noqa: D102
        self, requests: AsyncIterator[sealed_pb2.SealedFrame], context: _Context
    ) -> None:
        await self._stream(self._node.chat, requests, context)

    async def Enroll(  # noqa: D102
        self, requests: AsyncIterator[sealed_pb2.SealedFrame], context: _Context
    ) -> None:
        await self._stream(self._node.enroll, requests, context)

    async def Cancel(  # noqa: D102
        self, request: sealed_pb2.CancelRequest, context: _Context
    ) -> sealed_pb2.CancelResponse:
        await self._node.cancel(request.stream_id, request.mac)
        return sealed_pb2.CancelResponse()

    async def Resume(  # noqa: D102
        self, request: sealed_pb2.ResumeRequest, context: _Context
    ) -> None:
        frames = self._node.resume(request.stream_id, request.mac, request.next_frame)
        async with self._answering(context, None) as writer, aclosing(frames):
            # Who resumes may be of any version: nothing says that he reads bundles.
            await _write_frames(frames, writer, bundles=False)

    async def _stream(
        self, serve: _Open, requests: AsyncIterator[sealed_pb2.SealedFrame], context: _Context
    ) -> None:
        async with self._answering(context, requests) as writer:
            first = await _first(requests)
            head = SealedHead(first.head.nkc_sha256, first.head.sealed_key)
            async with aclosing(serve(head, _frames(first, requests))) as parts:
                [nonce] = await anext(parts)
                await _write_answer(nonce, parts, writer, bundles=first.head.bundles)
            await _until_half_closed(requests)

    @asynccontextmanager
    async def _answering(
        self, context: _Context, requests: AsyncIterator[sealed_pb2.SealedFrame] | None
    ) -> AsyncIterator[Writer]:
        """The call's writer; what is wrong before anything can be sealed it says in public."""
        async with writing(context, self._node.limits.stall_timeout_s) as writer:
            try:
                yield writer
            except (KeyUnknown, InvalidRequest) as error:
                await writer.write(sealed_pb2.SealedFrame(error=_public(error)))
                if requests is not None:
                    await _until_half_closed(requests)
            except BusyError:
                if requests is not None:
                    await _until_half_closed(requests)
                raise


async def start_server(
    node: Node, log: events.EventLog, listen: str, tls: TlsFiles | None
) -> tuple[grpc.aio.Server, str]:
    """A started server and the address that it got (port 0 takes a free one).

    Raises ``ConfigurationError`` when the address cannot be used.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # a port in use is an error, not a second listener
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # Clients ping while a long prompt prefills; that must not end in GOAWAY.
            ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 3_000),
            ("grpc.http2.ping_timeout_ms", 3_000),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
            ("grpc.max_connection_idle_ms", IDLE_CONNECTION_MS),
            ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
            ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
            ("grpc.max_concurrent_streams", MAX_CONNECTION_CALLS),
        ],
        interceptors=(Guard(log),),
        maximum_concurrent_rpcs=MAX_CALLS,
    )
    server.add_generic_rpc_handlers((health_handler(Health(node)),))
    trust_pb2_grpc.add_TrustServicer_to_server(TrustServicer(node), server)  # type: ignore[no-untyped-call]  # generated
    trust_pb2_grpc.add_FleetServicer_to_server(FleetServicer(node), server)  # type: ignore[no-untyped-call]  # generated
    sealed_pb2_grpc.add_SealedServicer_to_server(SealedServicer(node), server)  # type: ignore[no-untyped-call]  # generated
    address = _bind(server, listen, tls)
    await server.start()
    return server, address


def _bind(server: grpc.aio.Server, listen: str, tls: TlsFiles | None) -> str:
    try:
        if tls is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, server_credentials(tls))
    except RuntimeError as error:
        raise ConfigurationError(
            f"Cannot listen on {listen}: it is in use or not an address of this machine.",
            mend="Stop the other program, or give another --listen (port 0 takes a free one).",
        ) from error
    return listen if listen.startswith("unix:") else f"{listen.rsplit(':', 1)[0]}:{port}"


def _bundle(evidence: EvidenceBundle) -> trust_pb2.EvidenceBundle:
    """The evidence, and beside it that this node reads several frames in one message."""
    message = convert.bundle_to_proto(evidence)
    message.bundles = True
    return message


async def _first(requests: AsyncIterator[sealed_pb2.SealedFrame]) -> sealed_pb2.SealedFrame:
    try:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            message = await anext(aiter(requests), None)
    except TimeoutError:
        message = None
    if message is None or message.WhichOneof("part") != "head":
        raise InvalidRequest("A sealed request begins with its head.")
    return message


async def _write_answer(
    nonce: bytes,
    frames: AsyncGenerator[Sequence[bytes]],
    writer: Writer,
    *,
    bundles: bool,
) -> None:
    """The nonce with the first frames, where they come soon, and then the rest."""
    message = sealed_pb2.SealedFrame(response_nonce=nonce)
    if not bundles:
        await writer.write(message)
        return await _write_frames(frames, writer, bundles=False)
    coming = asyncio.ensure_future(anext(frames, ()))
    try:
        await asyncio.wait({coming}, timeout=NONCE_WAIT_S)
        if coming.done():
            message.more.extend(coming.result())
            await writer.write(message)
        else:
            await writer.write(message)
            await writer.send(await coming, bundles=True)
    finally:
        await _ended(coming)
    await _write_frames(frames, writer, bundles=True)


async def _ended(coming: asyncio.Future[Any]) -> None:
    """A generator is left to be closed only when nobody waits in it."""
    if not coming.done():
        coming.cancel()
        await asyncio.wait({coming})
    if not coming.cancelled():
        coming.exception()


async def _write_frames(
    frames: AsyncIterator[Sequence[bytes]], writer: Writer, *, bundles: bool
) -> None:
    async for ready in frames:
        await writer.send(ready, bundles=bundles)


async def _frames(
    first: sealed_pb2.SealedFrame, requests: AsyncIterator[sealed_pb2.SealedFrame]
) -> AsyncGenerator[bytes]:
    for frame in first.more:
        yield frame
    # Anything that is no frame becomes an empty one, which does not open.
    async for message in requests:
        yield message.frame
        for frame in message.more:
            yield frame


async def _until_half_closed(requests: AsyncIterator[sealed_pb2.SealedFrame]) -> None:
    """Let the client finish writing: when a call ends under its hands, grpcio reports an internal
    error to it in place of what we answered."""
    with suppress(TimeoutError):
        async with asyncio.timeout(HALF_CLOSE_TIMEOUT_S):
            while True:
                with suppress(InvalidRequest):  # what else comes is nothing to us, message or not
                    async for _ in requests:
                        pass
                    return


def _public(error: OverspillError) -> sealed_pb2.PublicError:
    """Two of the three codes that may be seen from outside, without a word more; the third, BUSY,
    is a status of gRPC's."""
    codes = sealed_pb2.PublicError
    unknown = isinstance(error, KeyUnknown)
    return codes(code=codes.UNKNOWN_KEY if unknown else codes.BAD_REQUEST)
