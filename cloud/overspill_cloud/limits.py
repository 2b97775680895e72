"""Quotas and the drain's time, apart from what enforces them; quotas are part of what a node
measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from overspill.sealing.signing import MAX_CLOCK_SKEW_S

DRAIN_S: Final = 20.0
"""Running streams get so long to end, unless an operator says otherwise."""
LEAVING_S: Final = 2.0
"""A node of a fleet answers for so long at least that it leaves, and who is there instead: to those
who learnt of it a moment ago."""
MOVED_S: Final = 0.3
"""And for so long after it has moved streams away, whose devices ask where to."""


@dataclass(frozen=True, slots=True)
class QuotaTerms:
    """How quotas are leased. ``lease_tokens`` is what a replica sets aside for a device at a time
    where there is plenty; a lease that is not renewed ends after ``lease_ttl_s``."""

    period_s: int = 86_400
    lease_tokens: int = 16_384
    lease_ttl_s: int = 60

    def period_of(self, unix_s: float) -> int:
        """When the period of a moment began."""
        return int(unix_s) // self.period_s * self.period_s


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Quotas. The replay window is twice the clock's tolerance: a request id is remembered for
    longer than its signature can pass."""

    max_streams: int = 64
    """Streams that run or wait, all models together."""
    batch_share: float = 0.75
    """Of streams and of KV tokens, so much at most is the batch lane's."""
    kv_queue_factor: float = 4.0
    """Streams are admitted for so many times the KV tokens that a model holds: the rest waits."""
    max_streams_per_device: int = 16
    replay_window_s: int = 2 * MAX_CLOCK_SKEW_S
    retry_after_s: float = 1.0
    quota_tokens: int | None = None
    """Tokens, of prompts and answers, that a device may take in a period; None: as many as it
    wants, unless it has a quota of its own."""
    quota: QuotaTerms = field(default_factory=QuotaTerms)
