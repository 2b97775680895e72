"""Quotas, apart from what enforces them: they are part of what a node measures."""

from __future__ import annotations

from dataclasses import dataclass

from overspill.sealing.signing import MAX_CLOCK_SKEW_S


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
