"""What a client remembers of a transparency log, and what a verification adds to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SplitEvidence:
    """Two signed checkpoints of one log that cannot both be true, as they were shown."""

    id: str
    origin: str
    remembered: bytes
    shown: bytes
    seen_unix: int


@dataclass(frozen=True, slots=True)
class LogMemory:
    """What this client knows of one log.

    The largest tree seen: ``size``, ``root`` (32 bytes), its signed ``checkpoint`` and the
    ``edge`` of its tiles. ``release_seq`` is the highest number of a release accepted so far,
    ``security_floor_seq`` the highest floor that one of them set. ``split`` is evidence that waits
    for a person. All zero and empty at first contact.
    """

    origin: str
    size: int = 0
    root: bytes = b""
    checkpoint: bytes = b""
    edge: bytes = b""
    release_seq: int = 0
    security_floor_seq: int = 0
    split: SplitEvidence | None = None
