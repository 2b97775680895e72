"""The road over gRPC: TLS to anywhere, plaintext to loopback addresses and Unix sockets only.

Every call is owned here and cancelled when its stream is left: since grpcio 1.83 an abandoned
aio call is never cancelled (grpc #43462). A frozen peer is seen by ``ping_timeout_ms``; its
default of a minute holds whatever keepalive says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from overspill import errors
from overspill.transport.base import ReadyFrames, SealedHead, is_local_address
from overspill.types.evidence import EvidenceBundle
from overspill.wire import convert
from overspill.wire.v1 import sealed_pb2, sealed_pb2_grpc, status_pb2, trust_pb2, trust_pb2_grpc

_T = TypeVar("_T")
_Code = grpc.StatusCode
BUNDLE_BYTES = 64 << 10
"""What goes together at most."""
_CHAT = f"/{sealed_pb2.DESCRIPTOR.services_by_name['Sealed'].full_name}/Chat"
_IT_CANCELLED = "it cancelled the call"


@dataclass(frozen=True, slots=True)
class GrpcOptions:
    """``ca_pem`` None means the system's roots; a server's own certificate may stand here.

    ``plaintext`` is refused for anything but loopback and Unix sockets. ``call_timeout_s`` bounds
    the unary calls; streams are watched by who reads them.
    """

    ca_pem: bytes | None = None
    server_name: str | None = None
    plaintext: bool = False
    call_timeout_s: float = 5.0
    keepalive_ms: int = 10_000
    ping_timeout_ms: int = 3_000
    max_frame_bytes: int = (1 << 20) + (1 << 16)
    """1 MiB of plaintext, with room for padding, tag and framing."""


class GrpcTransport:
    """A :class:`~overspill.transport.base.Transport` to ``host:port`` or ``unix:/path``.

    Raises ``ConfigurationError`` when plaintext would cross a network.
    """

    def __init__(self, address: str, options: GrpcOptions | None = None) -> None:
        self._options = options or GrpcOptions(plaintext=is_local_address(address))
        if self._options.plaintext and not is_local_address(address):
            raise errors.ConfigurationError(
                f"Plaintext to {address} would cross a network.",
                mend="Use TLS, a loopback address or a Unix socket.",
            )
        self._address = address
        self._bytes_sent = 0
        self._open: _Open | None = None
        self._closed = False
        self._bundles = False
        """Whether the node reads several frames in one message."""
        self._calls: set[grpc.aio.Call] = set()

    @property
    def address(self) -> str:
        """Where the node is."""
        return self._address

    @property
    def is_local(self) -> bool:
        """True for loopback addresses and Unix sockets."""
        return is_local_address(self._address)

    @property
    def bytes_sent(self) -> int:
        """Message bytes that went out so far, all calls together."""
        return self._bytes_sent

    async def get_bundle(self) -> EvidenceBundle:
        """Fetch the node's evidence bundle."""
        return await self._bundle(self._opened().trust.GetBundle, trust_pb2.GetBundleRequest())

    async def challenge(self, nonce: bytes) -> EvidenceBundle:
        """Fetch fresh evidence over a 32-byte nonce; ``BusyError`` when asked too often."""
        request = trust_pb2.ChallengeRequest(nonce=nonce)
        return await self._bundle(self._opened().trust.Challenge, request)

    async def get_cards(self) -> tuple[bytes, bytes]:
        """Fetch (serialised cards, signature)."""
        message = await self._unary(self._opened().trust.GetCards, trust_pb2.GetCardsRequest())
        return message.cards, message.signature

    async def locate(self) -> tuple[bytes, bytes]:
        """Fetch (serialised list of replicas, signature); ``InvalidRequest`` for none."""
        message = await self._unary(self._opened().fleet.Locate, trust_pb2.LocateRequest())
        return message.replicas, message.signature

    def chat(self, head: SealedHead, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Send sealed frames; yield the response nonce first, then sealed frames."""
        opened = self._opened()
        if more := self._together(frames):
            whole = self._counted(sealed_pb2.SealedFrame(head=_head(head), more=more))
            return self._read(opened.chat_at_once, whole, has_nonce=True)
        return self._stream(opened.sealed.Chat, head, frames)

    def enroll(self, head: SealedHead, frames: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """As :meth:`chat`, for an enrolment."""
        return self._stream(self._opened().sealed.Enroll, head, frames)

    def resume(self, stream_id: bytes, mac: bytes, next_frame: int) -> AsyncGenerator[bytes]:
        """Sealed frames of a stream whose connection was lost, from ``next_frame`` on."""
        request = sealed_pb2.ResumeRequest(stream_id=stream_id, mac=mac, next_frame=next_frame)
        self._bytes_sent += request.ByteSize()
        return self._read(self._opened().sealed.Resume, request, has_nonce=False)

    async def cancel(self, stream_id: bytes, mac: bytes) -> None:
        """Tell the node to stop a stream."""
        request = sealed_pb2.CancelRequest(stream_id=stream_id, mac=mac)
        await self._unary(self._opened().sealed.Cancel, request)

    async def aclose(self) -> None:
        """Cancel every call and close the connection, for good."""
        self._closed = True
        for call in tuple(self._calls):
            call.cancel()
        opened, self._open = self._open, None
        if opened is not None:
            await opened.channel.close()

    def _opened(self) -> _Open:
        if self._closed:
            raise errors.ConnectFailed(f"The connection to {self._address} was closed.")
        # The channel belongs to the running event loop, so it is made at the first call.
        if self._open is None:
            self._open = _Open(_channel(self._address, self._options))
        return self._open

    async def _bundle(self, method: Callable[..., Any], request: Any) -> EvidenceBundle:
        message = await self._unary(method, request)
        self._bundles = message.bundles
        return convert.bundle_from_proto(message)

    async def _unary(self, method: Callable[..., Awaitable[_T]], request: Any) -> _T:
        self._bytes_sent += request.ByteSize()
        call: Any = method(request, timeout=self._options.call_timeout_s)
        self._calls.add(call)
        try:
            return await _in_a_task(call)
        except grpc.aio.AioRpcError as error:
            raise _mapped(error, self._address, begun=False) from error
        except _Dropped:
            raise _broken(self._address, _IT_CANCELLED, begun=False) from None
        finally:
            call.cancel()
            self._calls.discard(call)

    def _stream(
        self, method: Callable[..., Any], head: SealedHead, frames: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes]:
        return self._read(method, self._messages(head, frames), has_nonce=True)

    async def _read(
        self, method: Callable[..., Any], request: Any, *, has_nonce: bool
    ) -> AsyncGenerator[bytes]:
        call = method(request)
        self._calls.add(call)
        begun = False
        try:
            answers = aiter(call)
            message = await _in_a_task(anext(answers, None))
            if message is not None:
                yield _part(message, expect_nonce=has_nonce)
                begun = True
                for frame in message.more:
                    yield frame
            async for message in answers:
                yield _part(message, expect_nonce=False)
                for frame in message.more:
                    yield frame
        except grpc.aio.AioRpcError as error:
            raise _mapped(error, self._address, begun=begun) from error
        except _Dropped:
            raise _broken(self._address, _IT_CANCELLED, begun=begun) from None
        except asyncio.CancelledError:
            if _we_left():
                raise
            raise _broken(self._address, _IT_CANCELLED, begun=begun) from None
        finally:
            call.cancel()
            self._calls.discard(call)

    async def _messages(
        self, head: SealedHead, frames: AsyncIterator[bytes]
    ) -> AsyncGenerator[sealed_pb2.SealedFrame]:
        more = self._together(frames)
        yield self._counted(sealed_pb2.SealedFrame(head=_head(head), more=more))
        async for frame in frames:
            yield self._counted(sealed_pb2.SealedFrame(frame=frame))

    def _together(self, frames: AsyncIterator[bytes]) -> list[bytes]:
        """All frames, where they are there and may go with the head; else none."""
        if self._bundles and isinstance(frames, ReadyFrames):
            return frames.take(BUNDLE_BYTES)
        return []

    def _counted(self, message: sealed_pb2.SealedFrame) -> sealed_pb2.SealedFrame:
        self._bytes_sent += message.ByteSize()
        return message


class _Open:
    """A channel with its stubs."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.trust = trust_pb2_grpc.TrustStub(channel)  # type: ignore[no-untyped-call]  # generated
        self.fleet = trust_pb2_grpc.FleetStub(channel)  # type: ignore[no-untyped-call]  # generated
        self.sealed = sealed_pb2_grpc.SealedStub(channel)  # type: ignore[no-untyped-call]  # generated
        # The same call, where one message is all of it: on the wire a client that streams and one
        # that does not look alike, and grpcio has less to do for this one.
        self.chat_at_once = channel.unary_stream(
            _CHAT,
            request_serializer=sealed_pb2.SealedFrame.SerializeToString,
            response_deserializer=sealed_pb2.SealedFrame.FromString,
        )


def _head(head: SealedHead) -> sealed_pb2.RequestHead:
    return sealed_pb2.RequestHead(
        nkc_sha256=head.nkc_sha256, sealed_key=head.sealed_key, bundles=True
    )


class _Dropped(Exception):
    """The call was cancelled, and not by our task."""


async def _in_a_task(answer: Awaitable[_T]) -> _T:
    """Await a call's beginning in a task of its own, so that a cancellation here is ours.

    Until a call has begun, grpcio answers our own cancellation with another CancelledError, which
    no cancel scope knows for its own.
    """
    task = asyncio.ensure_future(_awaited(answer))
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.add_done_callback(_ignore)  # its call is cancelled by whoever owns it
        raise
    try:
        return task.result()
    except asyncio.CancelledError:
        raise _Dropped from None


def _ignore(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def _awaited(answer: Awaitable[_T]) -> _T:
    return await answer


def _channel(address: str, options: GrpcOptions) -> grpc.aio.Channel:
    settings: list[tuple[str, Any]] = [
        ("grpc.http2.ping_timeout_ms", options.ping_timeout_ms),
        # A lost connection is made again at once, and then every second: streams wait for it.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.keepalive_time_ms", options.keepalive_ms),
        ("grpc.keepalive_timeout_ms", options.ping_timeout_ms),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", options.max_frame_bytes),
        ("grpc.max_send_message_length", options.max_frame_bytes),
        # A proxy named in the environment would see whom the device talks to.
        ("grpc.enable_http_proxy", 0),
        # Two transports are two connections: one lost stream says nothing about the other.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if options.server_name:
        settings.append(("grpc.ssl_target_name_override", options.server_name))
    if options.plaintext:
        return grpc.aio.insecure_channel(address, options=settings)
    credentials = grpc.ssl_channel_credentials(root_certificates=options.ca_pem)
    return grpc.aio.secure_channel(address, credentials, options=settings)


def _part(message: sealed_pb2.SealedFrame, *, expect_nonce: bool) -> bytes:
    """The nonce or the frame in a message; raises for public errors and anything out of place."""
    kind = message.WhichOneof("part")
    if kind == "error":
        raise _public_error(message.error.code)
    if kind != ("response_nonce" if expect_nonce else "frame"):
        raise errors.StreamCorrupt(f"The node sent {kind or 'nothing known'} out of order.")
    return message.response_nonce if expect_nonce else message.frame


def _public_error(code: int) -> errors.OverspillError:
    if code == sealed_pb2.PublicError.UNKNOWN_KEY:
        return errors.KeyUnknown(
            "The node no longer holds the key that the request was sealed to.",
            mend="Fetch and verify its evidence again.",
        )
    if code == sealed_pb2.PublicError.BUSY:
        return errors.BusyError("The node is busy.", mend="Try again in a moment.")
    return errors.InvalidRequest(
        "The node could not open the request.", mend="Check that both sides have one version."
    )


def _we_left() -> bool:
    """Whether a CancelledError is our task's own, not a status of the peer's dressed as one."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _mapped(error: grpc.aio.AioRpcError, address: str, *, begun: bool) -> errors.OverspillError:
    code, detail = error.code(), (error.details() or "").splitlines()[0:1]
    text = f"{code.name}: {detail[0] if detail else 'no detail'}"
    if code is _Code.RESOURCE_EXHAUSTED:
        return _busy(error, address)
    if code is _Code.INVALID_ARGUMENT:
        return errors.InvalidRequest(f"{address} refused the call ({text}).")
    if code is _Code.UNIMPLEMENTED:
        return errors.TransportError(
            f"{address} does not speak this protocol version.", mend="Upgrade the older side."
        )
    return _broken(address, text, begun=begun)


def _busy(error: grpc.aio.AioRpcError, address: str) -> errors.BusyError:
    """With google.rpc's details, where they came and are what they should be."""
    reason, retry_after_s = "", None
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            reason, retry_after_s = _details(value)
    return errors.BusyError(
        f"{address} is busy{f' ({reason})' if reason else ''}.",
        mend="Try again in a moment.",
        retry_after_s=retry_after_s,
        reason=reason,
    )


def _details(data: bytes) -> tuple[str, float | None]:
    reason, retry_after_s = "", None
    try:
        for detail in status_pb2.RpcStatus.FromString(data).details:
            kind = detail.type_url.rpartition("/")[2]
            if kind == "google.rpc.ErrorInfo":
                reason = status_pb2.ErrorInfo.FromString(detail.value).reason[:32]
            elif kind == "google.rpc.RetryInfo":
                delay = status_pb2.RetryInfo.FromString(detail.value).retry_delay
                retry_after_s = delay.seconds + delay.nanos / 1e9
    except DecodeError:
        return "", None
    return reason if reason.replace("_", "").isalpha() else "", retry_after_s


def _broken(address: str, why: str, *, begun: bool) -> errors.TransportError:
    if begun:
        return errors.StreamBroken(
            f"The connection to {address} was lost in mid-stream ({why}).", mend="Try again."
        )
    return errors.ConnectFailed(
        f"No answer from {address} ({why}).", mend="Check the address, and that the node runs."
    )
