"""What a witness answers (c2sp.org/tlog-witness), decided without a network or a disk.

A witness cosigns only what extends the tree that it cosigned last. The caller keeps that memory,
and has to store the new one before it hands out the cosignature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from overspill.errors import LogInvalid
from overspill.trust.log.checkpoint import Checkpoint, SignedCheckpoint, open_checkpoint
from overspill.trust.log.cosignature import cosign
from overspill.trust.log.encoding import (
    decode_decimal,
    decode_hash,
    decode_text,
    encode_base64,
    malformed,
)
from overspill.trust.log.merkle import EMPTY_ROOT, MAX_PROOF_HASHES, verify_consistency
from overspill.trust.log.note import MAX_NOTE_BYTES, Note, SignerKey, VerifierKey

ADD_CHECKPOINT: Final = "/add-checkpoint"
MAX_REQUEST_BYTES: Final = MAX_NOTE_BYTES + 64 * 64
SIZE_TYPE: Final = "text/x.tlog.size"
_OLD: Final = "old "


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """A request: the size that the witness cosigned last, the proof from there, the checkpoint."""

    old_size: int
    proof: tuple[bytes, ...]
    checkpoint: bytes

    def encode(self) -> bytes:
        """The request's body."""
        lines = (f"{_OLD}{self.old_size}", *map(encode_base64, self.proof), "")
        return "".join(f"{line}\n" for line in lines).encode() + self.checkpoint

    @classmethod
    def parse(cls, body: bytes) -> AddCheckpoint:
        """Strict parsing of all but the checkpoint. Raises ``LogInvalid("log_malformed")``."""
        text = decode_text(body, "an add-checkpoint request", max_bytes=MAX_REQUEST_BYTES)
        head, blank, checkpoint = text.partition("\n\n")
        old, *proof = head.split("\n")
        if not blank or not old.startswith(_OLD) or len(proof) > MAX_PROOF_HASHES:
            raise malformed("an add-checkpoint request", "other lines, or too many")
        size = decode_decimal(old.removeprefix(_OLD), "the old size")
        hashes = tuple(decode_hash(line, "a proof's hash") for line in proof)
        return cls(size, hashes, checkpoint.encode("utf-8"))


@dataclass(frozen=True, slots=True)
class Cosigned:
    """The last tree of one log that a witness cosigned; ``size`` 0 before the first."""

    size: int = 0
    root: bytes = EMPTY_ROOT


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP status and body; ``remember`` is to be stored for ``origin`` first."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    origin: str = ""
    remember: Cosigned | None = None


Remembered = Callable[[str], Cosigned]
"""What a witness cosigned last, by origin."""


def decide(
    body: bytes,
    logs: Mapping[str, VerifierKey],
    last: Remembered,
    key: SignerKey,
    unix_s: int,
) -> Answer:
    """The answer to ``POST /add-checkpoint``. ``logs`` maps known origins to their keys.

    Statuses as the specification has them: 400 malformed, 404 unknown log, 403 not signed by it,
    409 with the size to start from, or for a fork; 422 for a proof that does not hold.
    """
    try:
        request = AddCheckpoint.parse(body)
        origin = Checkpoint.parse(Note.parse(request.checkpoint).text).origin
    except LogInvalid as error:
        return _refusal(400, error.message)
    if origin not in logs:
        return _refusal(404, "unknown log")
    try:
        signed = open_checkpoint(request.checkpoint, origin, logs[origin])
    except LogInvalid as error:
        return _refusal(403, error.message)
    refused = _check_growth(request, signed, last(origin))
    if refused is not None:
        return refused
    line = cosign(signed.note.text, key, unix_s)
    remember = Cosigned(signed.size, signed.root)
    return Answer(200, str(line).encode("utf-8"), origin=origin, remember=remember)


def _check_growth(
    request: AddCheckpoint, signed: SignedCheckpoint, last: Cosigned
) -> Answer | None:
    """The refusal of a checkpoint that does not extend the last one; None for one that does."""
    if request.old_size > signed.size:
        return _refusal(400, "the old size is larger than the checkpoint's")
    if request.old_size != last.size:
        return Answer(409, f"{last.size}\n".encode("ascii"), SIZE_TYPE)
    if signed.size == last.size and signed.root != last.root:
        return _refusal(409, "another root for a size that was cosigned")
    if last.size == 0:
        return _refusal(422, "a proof from the empty tree") if request.proof else None
    try:
        verify_consistency(last.size, signed.size, request.proof, last.root, signed.root)
    except LogInvalid as error:
        return _refusal(422, error.message)
    return None


def _refusal(status: int, why: str) -> Answer:
    return Answer(status, f"{why}\n".encode())
