"""What a node may log: these typed events, and nothing else.

An allow-list instead of a filter: no field can hold text, a token id, an address or a request id;
times are cut to the minute and sizes to powers of four. A device is never logged with a size.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TextIO

BUCKET_BASE = 4


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """The node serves. ``models`` are the operator's own names; ``stated`` what is not hardened."""

    release: str
    assurance: str
    nkc_sha256: str
    models: tuple[str, ...]
    stated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvidenceRenewed:
    """A new node key configuration is served; the old one overlaps."""

    nkc_sha256: str
    new_key: bool


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """A stream ended; token counts are buckets (the next power of four)."""

    outcome: str
    model: str
    prompt_tokens_le: int
    completion_tokens_le: int


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A request was refused; ``code`` and ``reason`` are words from the error tree."""

    code: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class InternalError:
    """Something unexpected; only the exception's type and the place where it was caught."""

    kind: str
    where: str


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """The ledger cannot be written; what waits is kept. ``kind`` is the exception's type."""

    kind: str


@dataclass(frozen=True, slots=True)
class StoreRecovered:
    """The ledger is written again."""


@dataclass(frozen=True, slots=True)
class UsageLost:
    """The node stopped while the ledger could not be written: so many lines are in no ledger."""

    lines: int


@dataclass(frozen=True, slots=True)
class EngineRestarted:
    """A model's worker was gone or stuck and was started again, or could not be."""

    model: str
    ok: bool


@dataclass(frozen=True, slots=True)
class DeviceEnrolled:
    """A device was enrolled with a code."""


@dataclass(frozen=True, slots=True)
class StreamResumed:
    """A lost connection was replaced by another one, and the stream went on."""


@dataclass(frozen=True, slots=True)
class CertificateReplaced:
    """New TLS handshakes get another certificate; ``ok`` is false for files that cannot be used,
    and then the old one stays."""

    ok: bool


@dataclass(frozen=True, slots=True)
class NodeDraining:
    """No new streams from now on."""


@dataclass(frozen=True, slots=True)
class NodeStopped:
    """The end of an orderly stop."""


LogEvent = (
    NodeStarted
    | EvidenceRenewed
    | StreamEnded
    | RequestRefused
    | InternalError
    | StoreFailed
    | StoreRecovered
    | UsageLost
    | EngineRestarted
    | DeviceEnrolled
    | StreamResumed
    | CertificateReplaced
    | NodeDraining
    | NodeStopped
)


def bucket(tokens: int) -> int:
    """The smallest power of four that is at least ``tokens``; 0 for none."""
    edge = 1
    while edge < tokens:
        edge *= BUCKET_BASE
    return edge if tokens else 0


class EventLog:
    """Writes events as JSON lines, one a line. ``clock`` gives Unix seconds; ``told`` hears of
    each event too. A log that cannot be written (a full disk) stops nobody."""

    def __init__(
        self,
        clock: Callable[[], float],
        out: TextIO | None = None,
        told: Callable[[LogEvent], None] | None = None,
    ) -> None:
        self._clock = clock
        self._out = out
        self._told = told
        self.unwritten = 0
        """Events that the log's place did not take."""

    def write(self, event: LogEvent) -> None:
        """Log one event, its time cut to the minute."""
        minute = int(self._clock()) // 60 * 60
        line = {"minute_unix": minute, "event": type(event).__name__, **asdict(event)}
        try:
            print(json.dumps(line), file=self._out or sys.stderr, flush=True)
        except OSError:
            self.unwritten += 1
        if self._told is not None:
            self._told(event)
