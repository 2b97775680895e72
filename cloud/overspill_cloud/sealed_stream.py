"""The node's end of a sealed stream: open what comes in, seal what goes out. No policy here."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass

from overspill.errors import InvalidRequest, OverspillError, StreamCorrupt
from overspill.sealing.frames import CLIENT, SERVER, FrameOpener, FrameSealer, FrameType
from overspill.sealing.schedule import RESPONSE_NONCE_BYTES, KeySchedule, derive, stream_id
from overspill.sealing.signing import RequestSignature
from overspill.transport.base import SealedHead
from overspill.types.chat import Finish
from overspill.wire import plaintext
from overspill_cloud.keys import Epoch


@dataclass(frozen=True, slots=True)
class SealedRequest:
    """An opened request: who signed it, and the body's exact bytes."""

    signature: RequestSignature
    body: bytes


class SealedStream:
    """One request's keys at the node. Constructing it opens the head.

    Raises ``InvalidRequest`` when the sealed key does not open: a public error, since there is
    nothing yet to seal an answer with. Everything after it travels sealed.
    """

    def __init__(self, head: SealedHead, epoch: Epoch) -> None:
        try:
            secret = epoch.pair.open(head.sealed_key, head.nkc_sha256)
        except StreamCorrupt as error:
            raise InvalidRequest("The request could not be opened.") from error
        self.epoch = epoch
        self.id = stream_id(head.sealed_key)
        self.keys: KeySchedule = derive(head.nkc_sha256, head.sealed_key, secret)
        self.response_nonce = os.urandom(RESPONSE_NONCE_BYTES)
        self._opener = FrameOpener(self.keys.request, CLIENT)
        self._sealer = FrameSealer(self.keys.response(self.response_nonce), SERVER)
        self._seq = 0

    async def read(self, frames: AsyncIterator[bytes]) -> SealedRequest:
        """Open the whole request: AUTH, then BODY to its final frame.

        Raises ``StreamCorrupt`` for altered or misplaced frames, ``StreamTruncated`` for a
        request that ends early, ``InvalidRequest`` for plaintext that is none.
        """
        signature: RequestSignature | None = None
        body: list[bytes] = []
        async for sealed in frames:
            frame = self._opener.open(sealed)
            if (frame.type is FrameType.AUTH) != (signature is None):
                raise StreamCorrupt("A request is one AUTH frame, then BODY frames.")
            if signature is None:
                auth = plaintext.auth_from_bytes(frame.plaintext)
                signature = RequestSignature(*auth)
            else:
                body.append(frame.plaintext)
            if frame.final:
                break
        self._opener.finish()
        if signature is None:
            raise StreamCorrupt("The request has no AUTH frame.")
        return SealedRequest(signature, b"".join(body))

    def event(self, event: plaintext.Event) -> bytes:
        """Seal the next event."""
        return self._sealer.seal(FrameType.EVENT, self._numbered(event))

    def final(self, finish: Finish, receipt: bytes) -> bytes:
        """Seal the confirmed end."""
        event = plaintext.Final(finish, self._sealer.transcript_sha256, receipt)
        return self._sealer.seal(FrameType.FINAL, self._numbered(event))

    def error(self, error: OverspillError) -> bytes:
        """Seal a typed error; it ends the stream."""
        return self._sealer.seal(FrameType.ERROR, self._numbered(error))

    def enrolled(self, enrolled: plaintext.Enrolled) -> bytes:
        """Seal the answer to an enrolment."""
        return self._sealer.seal(FrameType.FINAL, plaintext.enrolled_to_bytes(enrolled))

    def _numbered(self, event: plaintext.Event) -> bytes:
        data = plaintext.event_to_bytes(self._seq, event)
        self._seq += 1
        return data
