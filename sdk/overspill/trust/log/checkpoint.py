"""Checkpoints (c2sp.org/tlog-checkpoint): the note text that says how large a log is, and its root.

Three lines, ``origin``, ``size`` in decimal and ``root`` in base64, then optional extension lines,
which are signed along and mean nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass

from overspill.errors import LogInvalid
from overspill.trust.log.encoding import decode_decimal, decode_hash, encode_base64, malformed
from overspill.trust.log.merkle import EMPTY_ROOT
from overspill.trust.log.note import Note, VerifierKey


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's tree head. ``root`` has 32 bytes."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """The note text, which log and witnesses sign."""
        lines = (self.origin, str(self.size), encode_base64(self.root), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """A note's text, strictly. Raises ``LogInvalid("log_malformed")``."""
        lines = text.removesuffix("\n").split("\n")
        if len(lines) < 3 or not all(lines):
            raise malformed("a checkpoint", "fewer than three lines, or an empty one")
        size = decode_decimal(lines[1], "a tree size")
        root = decode_hash(lines[2], "a root hash")
        if size == 0 and root != EMPTY_ROOT:
            raise malformed("a checkpoint", "an empty tree with a root of its own")
        return cls(lines[0], size, root, tuple(lines[3:]))


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint with the note that carries it, its origin and log signature verified."""

    checkpoint: Checkpoint
    note: Note

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.checkpoint.size

    @property
    def root(self) -> bytes:
        """The root over them (32 bytes)."""
        return self.checkpoint.root


def open_checkpoint(data: bytes, origin: str, key: VerifierKey) -> SignedCheckpoint:
    """The checkpoint in a signed note, if it is of ``origin`` and signed by ``key``.

    The origin is compared first: a key that signs for two logs signs for each alone. Raises
    ``LogInvalid``: ``log_malformed``, ``log_origin``, ``note_signature`` or ``note_unsigned``.
    """
    note = Note.parse(data)
    checkpoint = Checkpoint.parse(note.text)
    if checkpoint.origin != origin:
        raise LogInvalid(
            "log_origin", expected=f"a checkpoint of {origin}", actual=checkpoint.origin[:128]
        )
    note.verify((key,))
    return SignedCheckpoint(checkpoint, note)
