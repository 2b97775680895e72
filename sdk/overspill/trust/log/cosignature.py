"""Cosignatures (c2sp.org/tlog-cosignature, Ed25519 and ML-DSA-44) and the quorum that a client
demands.

A witness says at which time this was the largest tree it had seen of the log, consistent with
everything before. With Ed25519 it signs ``cosignature/v1``, the time and the checkpoint's text;
with ML-DSA-44 a message of its own name, the time, the log's origin, size and root. Witnesses of
one operator count as one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from overspill.errors import LogInvalid
from overspill.trust.log.checkpoint import Checkpoint, SignedCheckpoint, open_checkpoint
from overspill.trust.log.encoding import MAX_SIZE, malformed
from overspill.trust.log.note import (
    COSIGNATURE_V1,
    ML_DSA_44,
    Note,
    NoteSignature,
    SignerKey,
    VerifierKey,
    key_id,
)
from overspill.types.binary import prefixed

CLOCK_SKEW_S: Final = 90
"""How far a witness's clock may be ahead of the verifier's."""

_TIME_BYTES: Final = 8
_SIGNATURE_BYTES: Final = {COSIGNATURE_V1: 64, ML_DSA_44: 2420}
_MAX_NAME_BYTES: Final = 255
_SUBTREE: Final = b"subtree/v1\n\x00"


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness's key and who runs it."""

    operator: str
    key: VerifierKey


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """Which log is believed, and how many operators' witnesses have to have seen its state.

    ``quorum`` 0 stands for a policy without witnesses.
    """

    origin: str
    key: VerifierKey
    witnesses: tuple[Witness, ...] = ()
    quorum: int = 0


@dataclass(frozen=True, slots=True)
class CosignedCheckpoint:
    """A checkpoint that the policy believes. ``times`` maps operators to their newest
    cosignature, in Unix seconds."""

    signed: SignedCheckpoint
    data: bytes
    times: tuple[tuple[str, int], ...]

    @property
    def newest(self) -> int | None:
        """The newest cosignature's time; None without any."""
        return max((time for _, time in self.times), default=None)


def cosign(text: str, key: SignerKey, unix_s: int) -> NoteSignature:
    """A witness's signature line over a checkpoint's text."""
    signature = key.sign(_message(text, unix_s, key.verifier))
    timestamped = unix_s.to_bytes(_TIME_BYTES, "big") + signature
    return NoteSignature(key.name, key.verifier.key_id, timestamped)


def cosignature_time(note: Note, line: NoteSignature, key: VerifierKey) -> int:
    """When ``key`` cosigned. Raises ``LogInvalid("cosignature_invalid")``."""
    if len(line.signature) - _TIME_BYTES != _SIGNATURE_BYTES.get(key.kind):
        raise _invalid(key, f"{len(line.signature)} bytes")
    unix_s = int.from_bytes(line.signature[:_TIME_BYTES], "big")
    valid = unix_s <= MAX_SIZE and key.is_valid(
        line.signature[_TIME_BYTES:], _message(note.text, unix_s, key)
    )
    if not valid:
        raise _invalid(key, "one that is not")
    return unix_s


def open_cosigned(data: bytes, policy: LogPolicy, now_unix: int) -> CosignedCheckpoint:
    """A checkpoint by the policy's log with its quorum of witnesses.

    Raises ``LogInvalid``: what :func:`~overspill.trust.log.checkpoint.open_checkpoint` raises, and
    ``cosigned_by_log``, ``cosignature_invalid``, ``cosignature_from_future``, ``not_cosigned``,
    ``witness_quorum``.
    """
    signed = open_checkpoint(data, policy.origin, policy.key)
    note = signed.note
    for line in note.signatures:
        _refuse_the_logs_own(line, policy)
    newest: dict[str, int] = {}
    for witness in policy.witnesses:
        for line in note.signatures:
            if line.claims(witness.key):
                time = _present_time(note, line, witness.key, now_unix)
                newest[witness.operator] = max(time, newest.get(witness.operator, 0))
    if len(newest) < policy.quorum:
        raise LogInvalid(
            "witness_quorum" if newest else "not_cosigned",
            expected=f"cosignatures of {policy.quorum} operators' witnesses",
            actual=", ".join(sorted(newest)) or "none",
        )
    return CosignedCheckpoint(signed, data, tuple(sorted(newest.items())))


def _refuse_the_logs_own(line: NoteSignature, policy: LogPolicy) -> None:
    """A log that vouches for itself proves nothing, under whatever name it does."""
    if line.key_id == key_id(line.name, COSIGNATURE_V1, policy.key.public):
        raise LogInvalid(
            "cosigned_by_log",
            expected="cosignatures by others than the log",
            actual=f"one by the log's own key, as {line.name[:80]}",
        )


def _present_time(note: Note, line: NoteSignature, key: VerifierKey, now_unix: int) -> int:
    time = cosignature_time(note, line, key)
    if time > now_unix + CLOCK_SKEW_S:
        raise LogInvalid(
            "cosignature_from_future",
            expected=f"a cosignature from before {now_unix + CLOCK_SKEW_S}",
            actual=f"one by {key.name} from {time}",
            mend="Set this machine's clock, or the witness's.",
        )
    return time


def _message(text: str, unix_s: int, key: VerifierKey) -> bytes:
    if key.kind == ML_DSA_44:
        return _subtree_message(text, unix_s, key.name)
    return f"cosignature/v1\ntime {unix_s}\n{text}".encode()


def _subtree_message(text: str, unix_s: int, name: str) -> bytes:
    """The whole tree as a subtree: from leaf 0 to its size. Raises ``LogInvalid`` for names that do
    not fit."""
    tree = Checkpoint.parse(text)
    names = [one.encode("utf-8") for one in (name, tree.origin)]
    if any(len(one) > _MAX_NAME_BYTES for one in names):
        raise malformed("a cosigned message", f"a name of more than {_MAX_NAME_BYTES} bytes")
    return b"".join(
        (
            _SUBTREE,
            prefixed(1, names[0]),
            unix_s.to_bytes(_TIME_BYTES, "big"),
            prefixed(1, names[1]),
            struct.pack(">QQ", 0, tree.size),
            tree.root,
        )
    )


def _invalid(key: VerifierKey, actual: str) -> LogInvalid:
    return LogInvalid(
        "cosignature_invalid", expected=f"a valid cosignature by {key.name}", actual=actual
    )
