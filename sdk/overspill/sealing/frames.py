"""Sealed frames: one direction of one request, in order, to its end.

A frame on the wire is ``type (1) || final (1) || ChaCha20-Poly1305(padded plaintext)``. Frame i of
a direction is sealed under ``nonce XOR i`` with ``aad = "ovs1" || direction || u64(i) || type ||
final``: the index is never sent, so a dropped, repeated, swapped or reflected frame does not open.
The padded plaintext is ``u32 length || content || zeros`` up to a multiple of 64 bytes, and the
padding is checked: there is one encoding of a frame.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from overspill.errors import DoesNotFit, StreamCorrupt, StreamTruncated, UsageError
from overspill.sealing.schedule import FrameKeys

CLIENT: Final = b"C"
SERVER: Final = b"S"

BUCKET_BYTES: Final = 64
MAX_FRAME_BYTES: Final = 1 << 20
MAX_REQUEST_BYTES: Final = 16 << 20
MAX_FRAMES: Final = 1 << 32

_HEADER_BYTES: Final = 2
_TAG_BYTES: Final = 16
_LENGTH_BYTES: Final = 4
_MIN_FRAME_BYTES: Final = _HEADER_BYTES + BUCKET_BYTES + _TAG_BYTES
_MAX_PADDED_BYTES: Final = (MAX_FRAME_BYTES - _HEADER_BYTES - _TAG_BYTES) // 64 * 64
MAX_CONTENT_BYTES: Final = _MAX_PADDED_BYTES - _LENGTH_BYTES
"""The longest content of one frame; a longer body goes in several frames (``seal_body``)."""


class FrameType(IntEnum):
    """What a frame carries. The client sends AUTH and BODY, the node BODY, EVENT, FINAL, ERROR."""

    AUTH = 1
    BODY = 2
    EVENT = 3
    FINAL = 4
    ERROR = 5


_ENDS: Final = frozenset({FrameType.FINAL, FrameType.ERROR})
_MAY_END: Final = _ENDS | {FrameType.BODY}
_SENDS: Final = {
    CLIENT: frozenset({FrameType.AUTH, FrameType.BODY}),
    SERVER: frozenset({FrameType.BODY, FrameType.EVENT, FrameType.FINAL, FrameType.ERROR}),
}
_HEADERS: Final = {
    direction: {
        bytes((kind, final)): (kind, final)
        for kind in kinds
        for final in (False, True)
        if (final or kind not in _ENDS) and (not final or kind in _MAY_END)
    }
    for direction, kinds in _SENDS.items()
}
"""Every header that a direction may carry: reading one is a look-up, once a frame."""

_PACK_INDEX: Final = struct.Struct(">Q").pack


@dataclass(frozen=True, slots=True)
class Frame:
    """An opened frame: authentic, complete and in its place."""

    type: FrameType
    plaintext: bytes
    final: bool


class _Direction:
    """What sealing and opening share: the counter, the nonce, the limits, the transcript."""

    def __init__(self, keys: FrameKeys, direction: bytes) -> None:
        if direction not in _SENDS:
            raise UsageError(f"{direction!r} is no direction.", mend="Use CLIENT or SERVER.")
        self._aead = ChaCha20Poly1305(keys.key)
        self._nonce = int.from_bytes(keys.nonce, "big")
        self._direction = direction
        self._aad = b"ovs1" + direction
        self._headers = _HEADERS[direction]
        self._index = 0
        self._bytes = 0
        self._transcript = hashlib.sha256()
        self._ended = False

    @property
    def transcript_sha256(self) -> bytes:
        """SHA-256 over ``type || u32 length || plaintext`` of every frame so far but FINAL."""
        return self._transcript.digest()

    def _nonce_and_aad(self, header: bytes) -> tuple[bytes, bytes]:
        index = self._index
        nonce = (self._nonce ^ index).to_bytes(12, "big")
        return nonce, self._aad + _PACK_INDEX(index) + header

    def _advance(self, header: bytes, body: bytes, size: int) -> None:
        """Counts a frame of ``size`` sealed bytes; ``body`` is its length and content."""
        kind, final = self._headers[header]
        self._index += 1
        self._bytes += size
        self._ended = final
        if kind is not FrameType.FINAL:
            self._transcript.update(header[:1] + body)

    def _excess(self, size: int) -> str:
        """Why a frame of ``size`` sealed bytes would break a limit, or an empty string."""
        if size > MAX_FRAME_BYTES:
            return f"A frame of {size} bytes exceeds the limit of {MAX_FRAME_BYTES}."
        if self._direction == CLIENT and self._bytes + size > MAX_REQUEST_BYTES:
            return f"The request exceeds the limit of {MAX_REQUEST_BYTES} bytes."
        if self._index >= MAX_FRAMES:
            return f"The stream exceeds the limit of {MAX_FRAMES} frames."
        return ""

    def __reduce__(self) -> NoReturn:
        # A copy would seal one index twice with different content: a reused nonce.
        raise UsageError("A sealed stream's state is never copied or serialised.")


class FrameSealer(_Direction):
    """Seals one direction's frames in order. An index is never sealed twice."""

    def seal(self, kind: FrameType, plaintext: bytes, *, final: bool = False) -> bytes:
        """One frame as it travels. FINAL and ERROR are always final; only BODY has a choice.

        Raises ``DoesNotFit`` beyond 1 MiB a frame, 16 MiB a request or 2^32 frames, and
        ``UsageError`` after a final frame or for a type that this direction does not send.
        """
        final = final or kind in _ENDS
        self._check_order(kind, final)
        body = len(plaintext).to_bytes(_LENGTH_BYTES, "big") + plaintext
        padded = body + bytes(-len(body) % BUCKET_BYTES)
        size = _HEADER_BYTES + len(padded) + _TAG_BYTES
        if excess := self._excess(size):
            raise DoesNotFit(excess, mend="Send less in one request.")
        header = bytes((kind, final))
        nonce, aad = self._nonce_and_aad(header)
        sealed = self._aead.encrypt(nonce, padded, aad)
        self._advance(header, body, size)
        return header + sealed

    def seal_body(self, content: bytes) -> list[bytes]:
        """``content`` as BODY frames of at most 1 MiB, the last one final."""
        starts = range(0, max(len(content), 1), MAX_CONTENT_BYTES)
        pieces = [content[start : start + MAX_CONTENT_BYTES] for start in starts]
        last = len(pieces) - 1
        return [
            self.seal(FrameType.BODY, piece, final=number == last)
            for number, piece in enumerate(pieces)
        ]

    def _check_order(self, kind: FrameType, final: bool) -> None:
        if self._ended:
            raise UsageError("The stream has ended: nothing is sealed after its final frame.")
        if kind not in _SENDS[self._direction]:
            raise UsageError(f"{kind.name} frames do not go in direction {self._direction!r}.")
        if final and kind not in _MAY_END:
            raise UsageError(f"{kind.name} frames do not end a stream.")


class FrameOpener(_Direction):
    """Opens one direction's frames in order; the first failure is for good."""

    def __init__(self, keys: FrameKeys, direction: bytes) -> None:
        super().__init__(keys, direction)
        self._broken = False

    @property
    def next_index(self) -> int:
        """The index of the frame that is due."""
        return self._index

    def open(self, frame: bytes) -> Frame:
        """The frame's content. Raises ``StreamCorrupt`` for everything but the exact next frame."""
        if self._broken:
            raise StreamCorrupt("The stream was corrupt before this frame.")
        try:
            return self._open(frame)
        except StreamCorrupt:
            self._broken = True
            raise

    def finish(self) -> None:
        """Call when the stream closed. Raises ``StreamTruncated`` unless a final frame came."""
        if self._broken:
            raise StreamCorrupt("The stream was corrupt before it closed.")
        if not self._ended:
            raise StreamTruncated(
                f"The stream ended after {self._index} frames without its final frame.",
                mend="Treat the text as unconfirmed and ask again.",
            )

    def check_transcript(self, claimed_sha256: bytes) -> None:
        """Raises ``StreamCorrupt`` unless FINAL's digest is the one of the frames that came."""
        if claimed_sha256 != self.transcript_sha256:
            self._broken = True
            raise StreamCorrupt("FINAL's digest is not that of the frames before it.")

    def _open(self, frame: bytes) -> Frame:
        if self._ended:
            raise StreamCorrupt("A frame came after the final one.")
        if excess := self._excess(len(frame)):
            raise StreamCorrupt(excess)
        header = frame[:_HEADER_BYTES]
        if header not in self._headers or len(frame) < _MIN_FRAME_BYTES:
            raise StreamCorrupt(f"Frame {self._index} {self._complaint(frame)}.")
        nonce, aad = self._nonce_and_aad(header)
        try:
            padded = self._aead.decrypt(nonce, frame[_HEADER_BYTES:], aad)
        except InvalidTag as error:
            raise StreamCorrupt(
                f"Frame {self._index} was altered or is not the next one of this stream."
            ) from error
        body = _unpad(padded)
        self._advance(header, body, len(frame))
        kind, final = self._headers[header]
        return Frame(kind, body[_LENGTH_BYTES:], final)

    def _complaint(self, frame: bytes) -> str:
        """What is wrong with a header that is none of this direction's."""
        if len(frame) < _MIN_FRAME_BYTES or frame[1] > 1:
            return "has no valid header"
        try:
            kind = FrameType(frame[0])
        except ValueError:
            return f"has the unknown type {frame[0]}"
        if kind in _ENDS and kind in _SENDS[self._direction]:
            return f"of type {kind.name} is not marked final"
        return f"of type {kind.name} has no place here"


def _unpad(padded: bytes) -> bytes:
    """Length and content, without the zeros up to the next bucket. There is one way to pad."""
    end = _LENGTH_BYTES + int.from_bytes(padded[:_LENGTH_BYTES], "big")
    body, zeros = padded[:end], padded[end:]
    is_whole = len(body) == end and len(padded) % BUCKET_BYTES == 0
    if not is_whole or len(zeros) >= BUCKET_BYTES or zeros.strip(b"\0"):
        raise StreamCorrupt("A frame's padding is not the canonical one.")
    return body
