"""One sealed exchange with a node: a signed request goes out, opened events come in.

Knows the protocol, and neither evidence nor engines: it is given a verified key. What may be
believed about the answer is decided in :meth:`Exchange.chunks`, in order: frames that open, events
without gaps, FINAL, its transcript hash, its receipt.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import anyio

from overspill.errors import (
    BusyError,
    InvalidRequest,
    KeyUnknown,
    OverspillError,
    ReceiptInvalid,
    StreamBroken,
    StreamCorrupt,
    StreamTruncated,
    TransportError,
    UsageError,
)
from overspill.patience import Patience
from overspill.sealing.frames import CLIENT, SERVER, Frame, FrameOpener, FrameSealer, FrameType
from overspill.sealing.hpke import seal_secret
from overspill.sealing.receipt import ReceiptClaims, check_receipt, response_content
from overspill.sealing.schedule import KeySchedule, cancel_mac, derive, resume_mac, stream_id
from overspill.sealing.signing import REQUEST_ID_BYTES, DeviceSigner, sign_request
from overspill.transport.base import ReadyFrames, SealedHead, Transport
from overspill.types.chat import Chunk, Finish, ToolCall
from overspill.types.evidence import AttestationResult
from overspill.wire import plaintext

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ExchangeLimits:
    """Silence for ``idle_timeout_s`` is a dead road: a busy node says so every 2 s.

    ``closing_timeout_s`` bounds what comes after the answer: the road's end, or a Cancel. A lost
    connection is replaced for ``resume_timeout_s``; a node that was silent gets
    ``silent_resume_s``, and then another one is asked.
    """

    idle_timeout_s: float = 7.0
    closing_timeout_s: float = 2.0
    resume_timeout_s: float = 2.5
    silent_resume_s: float = 1.0
    first_pause_s: float = 0.02
    max_pause_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A sealed request, ready to go. ``size_bytes`` is all that leaves for it."""

    head: SealedHead
    frames: tuple[bytes, ...]
    keys: KeySchedule
    request_id: bytes
    body: bytes

    @property
    def size_bytes(self) -> int:
        """Head, sealed secret and sealed frames."""
        head = len(self.head.nkc_sha256) + len(self.head.sealed_key)
        return head + sum(len(frame) for frame in self.frames)

    def each_frame(self) -> AsyncIterator[bytes]:
        """The frames as a transport takes them."""
        return ReadyFrames(self.frames)


def seal_request(
    result: AttestationResult, signer: DeviceSigner, body: bytes, unix_ms: int
) -> Outgoing:
    """Sign ``body`` and seal it to the verified key, under a secret and an id of its own.

    Raises ``DoesNotFit`` for more than 16 MiB.
    """
    sealed = seal_secret(result)
    keys = derive(result.nkc_sha256, sealed.sealed_key, sealed.secret)
    signature = sign_request(
        signer, th=keys.th, body=body, request_id=os.urandom(REQUEST_ID_BYTES), unix_ms=unix_ms
    )
    auth = plaintext.Auth(
        request_id=signature.request_id,
        unix_ms=signature.unix_ms,
        device_thumbprint=signature.device_thumbprint,
        flags=signature.flags,
        grant=signature.grant,
        signature=signature.signature,
    )
    sealer = FrameSealer(keys.request, CLIENT)
    first = sealer.seal(FrameType.AUTH, plaintext.auth_to_bytes(auth))
    return Outgoing(
        head=SealedHead(result.nkc_sha256, sealed.sealed_key),
        frames=(first, *sealer.seal_body(body)),
        keys=keys,
        request_id=signature.request_id,
        body=body,
    )


class Migrated(StreamBroken):
    """The node will not finish this stream, and says so: go on elsewhere, at once."""


class _Silent(StreamBroken):
    """A node that says nothing may be frozen: another connection to it is not worth much."""


Reopen = Callable[[int | None], AsyncGenerator[bytes]]
"""The stream over another connection: from a frame on, or from its start for None."""


class Incoming:
    """The node's frames, opened in order. Without ``reopen`` a lost connection is the end."""

    def __init__(
        self,
        call: AsyncGenerator[bytes],
        keys: KeySchedule,
        limits: ExchangeLimits,
        reopen: Reopen | None = None,
    ) -> None:
        self._call = call
        self._keys = keys
        self._limits = limits
        self._reopen = reopen
        self._opener: FrameOpener | None = None
        self._patience = Patience(limits.idle_timeout_s)
        self.resumed = 0
        """How often a lost connection was replaced."""

    async def begin(self) -> None:
        """Read the response nonce. Raises ``KeyUnknown``, ``InvalidRequest`` or ``BusyError``,
        the three answers that a node may give unsealed, and ``TransportError``."""
        try:
            nonce = await self._next()
        except StreamBroken as error:
            nonce = await self._again(error)
        if nonce is None:
            raise StreamTruncated("The node closed the stream without a word.", mend="Try again.")
        self._opener = FrameOpener(self._keys.response(nonce), SERVER)

    async def frame(self) -> Frame:
        """The next frame. Raises ``StreamTruncated`` at an end without a final frame."""
        try:
            data = await self._next()
        except TransportError as error:
            data = await self._again(error)
        if data is None:
            self._opened.finish()
            raise StreamTruncated("The stream ended before its final frame.")
        return self._opened.open(data)

    def check_transcript(self, claimed_sha256: bytes) -> None:
        """Raises ``StreamCorrupt`` unless FINAL's hash is that of the frames that came."""
        self._opened.check_transcript(claimed_sha256)

    async def expect_end(self) -> None:
        """Raises ``StreamCorrupt`` for anything after the final frame."""
        # The answer is complete and authentic: how the road ends no longer matters.
        with anyio.move_on_after(self._limits.closing_timeout_s), suppress(TransportError):
            async for data in self._call:
                self._opened.open(data)

    async def aclose(self) -> None:
        """Leave the call."""
        self._patience.stop()
        self._reopen = None  # its owner's method: they would hold each other
        await self._call.aclose()

    @property
    def _opened(self) -> FrameOpener:
        if self._opener is None:
            raise UsageError("begin() comes before frames are read.")
        return self._opener

    async def _again(self, lost: TransportError) -> bytes | None:
        """What is due, over another connection. Raises ``lost`` when there is none in time."""
        reopen = self._reopen
        if reopen is None:
            raise lost
        within_s, pause_s = self._limits.resume_timeout_s, self._limits.first_pause_s
        if isinstance(lost, _Silent):
            within_s = min(within_s, self._limits.silent_resume_s)
        with anyio.move_on_after(within_s):
            while True:
                with anyio.CancelScope(shield=True):
                    await self._call.aclose()
                try:
                    self._call = reopen(None if self._opener is None else self._opener.next_index)
                except TransportError:
                    break  # this side closed the road for good
                try:
                    data = await anext(self._call, None)
                except TransportError:
                    await anyio.sleep(pause_s)
                    pause_s = min(2 * pause_s, self._limits.max_pause_s)
                except (BusyError, InvalidRequest, KeyUnknown):
                    break  # it is not there any more
                else:
                    self.resumed += 1
                    return data
        raise lost

    async def _next(self) -> bytes | None:
        try:
            return await self._patience.wait(anext(self._call, None))
        except TimeoutError:
            silent_s = self._limits.idle_timeout_s
            raise _Silent(f"The node was silent for {silent_s:g} s.", mend="Try again.") from None


class Exchange:
    """A chat request under way: opened frames become chunks; the end is checked.

    ``models`` maps the names in the verified evidence to their files' SHA-256, an adapter's being
    ``MODEL/NAME``.
    ``model`` is the one that was asked for, None any. Whoever makes one closes it.
    """

    def __init__(
        self,
        transport: Transport,
        result: AttestationResult,
        models: Mapping[str, bytes],
        outgoing: Outgoing,
        limits: ExchangeLimits,
        *,
        model: str | None = None,
    ) -> None:
        self.result = result
        self.outgoing = outgoing
        self.receipt: bytes | None = None
        self.claims: ReceiptClaims | None = None
        """Receipt and claims are there once everything has verified."""
        self._transport = transport
        self._models = models
        self._model = model
        self._limits = limits
        call = transport.chat(outgoing.head, outgoing.each_frame())
        self._incoming = Incoming(call, outgoing.keys, limits, self._reopen)
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self._next_seq = 0
        self._over = False

    async def begin(self) -> None:
        """Send, and wait for the node's first sign. Raises as :meth:`Incoming.begin`."""
        try:
            await self._incoming.begin()
        except OverspillError:
            self._over = True
            raise

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """Chunks as they come; the one with ``finish`` when everything has verified.

        Raises the node's own sealed error, ``StreamCorrupt``, ``StreamTruncated``,
        ``StreamBroken`` or ``ReceiptInvalid``.
        """
        while True:
            event = self._event(await self._incoming.frame())
            match event:
                case Chunk():
                    self._text.append(event.text)
                    self._calls += event.tool_calls
                    yield event
                case plaintext.Final():
                    yield Chunk(finish=await self._confirmed(event))
                    return
                case plaintext.Migrate():
                    raise Migrated("The node is shutting down.", mend="Go on elsewhere.")
                case OverspillError():
                    self._over = True
                    raise event

    @property
    def resumed(self) -> int:
        """How often a lost connection was replaced."""
        return self._incoming.resumed

    def _reopen(self, next_frame: int | None) -> AsyncGenerator[bytes]:
        outgoing = self.outgoing
        if next_frame is None:  # the same start again is the same stream
            return self._transport.chat(outgoing.head, outgoing.each_frame())
        stream = stream_id(outgoing.head.sealed_key)
        mac = resume_mac(outgoing.keys, stream, next_frame)
        return self._transport.resume(stream, mac, next_frame)

    async def aclose(self) -> None:
        """Leave; a stream that is not over is cancelled at the node, explicitly."""
        with anyio.move_on_after(self._limits.closing_timeout_s, shield=True):
            if not self._over:
                stream = stream_id(self.outgoing.head.sealed_key)
                # A node that cannot be told notices the lost connection by itself.
                with suppress(OverspillError):
                    await self._transport.cancel(stream, cancel_mac(self.outgoing.keys, stream))
        with anyio.CancelScope(shield=True):
            await self._incoming.aclose()

    def _event(self, frame: Frame) -> plaintext.Event | None:
        """The frame's event, in its place; None for one of a newer version."""
        seq, event = parsed(plaintext.event_from_bytes, frame.plaintext)
        if seq != self._next_seq:
            raise StreamCorrupt(f"Event {seq} came where {self._next_seq} was due.")
        self._next_seq += 1
        if frame.type is not _frame_type(event):
            raise StreamCorrupt(f"A {frame.type.name} frame holds another kind of event.")
        return event

    async def _confirmed(self, final: plaintext.Final) -> Finish:
        """Check the end, in order, and return it with its receipt."""
        self._over = True
        self._incoming.check_transcript(final.transcript_sha256)
        claims = check_receipt(
            final.receipt,
            self.result.receipt_public_key,
            nkc_sha256=self.result.nkc_sha256,
            th=self.outgoing.keys.th,
            request_id=self.outgoing.request_id,
            salt=self.outgoing.keys.commitment_salt,
            request=self.outgoing.body,
            response=response_content("".join(self._text), self._calls),
        )
        self._check_claims(claims, final.finish)
        await self._incoming.expect_end()
        self.receipt, self.claims = final.receipt, claims
        return replace(final.finish, receipt=final.receipt)

    def _check_claims(self, claims: ReceiptClaims, finish: Finish) -> None:
        usage = finish.usage
        pairs = (
            ("model", claims.model, finish.model),
            ("model", claims.model, self._model or claims.model),
            ("model digest", claims.model_sha256, self._models.get(claims.model)),
            ("adapter", claims.adapter, finish.adapter or ""),
            ("adapter digest", claims.adapter_sha256, self._adapter_sha256(claims)),
            ("prompt tokens", claims.prompt_tokens, usage.prompt_tokens),
            ("completion tokens", claims.completion_tokens, usage.completion_tokens),
            ("finish reason", claims.finish_reason, finish.reason.value),
        )
        for what, claimed, expected in pairs:
            if claimed != expected:
                raise ReceiptInvalid(f"The receipt's {what} is not the one of answer and evidence.")

    def _adapter_sha256(self, claims: ReceiptClaims) -> bytes | None:
        if not claims.adapter:
            return bytes(32)
        return self._models.get(f"{claims.model}/{claims.adapter}")


def _frame_type(event: plaintext.Event | None) -> FrameType:
    if isinstance(event, plaintext.Final):
        return FrameType.FINAL
    return FrameType.ERROR if isinstance(event, OverspillError) else FrameType.EVENT


def parsed(parse: Callable[[bytes], _T], data: bytes) -> _T:
    """What a node sent, decoded; what does not decode is a corrupt stream, not a bad request."""
    try:
        return parse(data)
    except InvalidRequest as error:
        raise StreamCorrupt(f"The node sent what is no message: {error.message}") from error
