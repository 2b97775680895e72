"""How fast a route is, learnt from what its answers took: moving averages and 95th percentiles.

Times follow quickly when they get worse and slowly when they get better; while nothing new is
learnt they return to what they were in the long run, so that a route which was slow once is tried
again. All clocks are arguments: a replay runs through the same code as a live client.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from overspill.types.chat import Finish
from overspill.types.route import NetworkState
from overspill.types.usage import Usage

Clock = Callable[[], float]
"""Seconds that only grow."""
MEMORY_S = 120.0
"""A surprise is half forgotten after some 80 s without news."""
_ATTACK, _FOLLOW, _LONG_RUN = 0.6, 0.3, 0.05
"""Weights of the newest measurement: a surprise, an ordinary one, the long run."""
_SURPRISE = 2.0
"""So many standard deviations off is no chance: things have changed."""
_P95_SIGMAS = 1.645
_CROWDING = 0.05
"""Weight of the newest slowdown in a crowd: the machine's own ups and downs have to average out."""
_MOST_CROWDED = 3.0
_MIN_PREFILL_TOKENS = 16
_MIN_DECODE_TOKENS = 8
_FIRST_BAND_TOKENS = 512
_LEAST_S = 1e-7
"""Per token: faster is no measurement."""


class Average:
    """The moving average of a time, and what 95% of its measurements are under.

    Two pairs of mean and variance: one of the latest measurements, one of the long run, to which
    the first returns while nothing new is measured.
    """

    def __init__(self, long_run: float | None = None) -> None:
        self.long_run = long_run
        self._long_variance = 0.0
        self._mean, self._variance = long_run or 0.0, 0.0
        self._at_s = -math.inf

    def observe(self, value: float, now_s: float) -> None:
        """Learn one measurement."""
        if self.long_run is None:
            self.long_run = self._mean = value
        else:
            mean, variance = self._now(now_s)
            off = value - mean
            weight = _ATTACK if off * off > _SURPRISE**2 * variance else _FOLLOW
            self._mean, self._variance = _moved(mean, variance, off, weight)
            self.long_run, self._long_variance = _moved(
                self.long_run, self._long_variance, value - self.long_run, _LONG_RUN
            )
        self._at_s = now_s

    def mean(self, now_s: float) -> float:
        """The value to expect now. Raises ``ValueError`` where nothing was ever measured."""
        return self._now(now_s)[0]

    def p95(self, now_s: float) -> float:
        """What 95% of measurements are under, as far as they are normal; never under the mean."""
        mean, variance = self._now(now_s)
        return mean + _P95_SIGMAS * math.sqrt(variance)

    def _now(self, now_s: float) -> tuple[float, float]:
        if self.long_run is None:
            raise ValueError("nothing was measured")
        kept = math.exp((self._at_s - now_s) / MEMORY_S)
        return (
            self.long_run + kept * (self._mean - self.long_run),
            self._long_variance + kept * (self._variance - self._long_variance),
        )


def _moved(mean: float, variance: float, off: float, weight: float) -> tuple[float, float]:
    """Exponentially weighted mean and variance after a value that was ``off`` the mean."""
    return mean + weight * off, (1.0 - weight) * (variance + weight * off * off)


@dataclass(frozen=True, slots=True)
class Speeds:
    """Tokens per second, on average and at the 95th percentile of times; None is unmeasured."""

    prefill: float | None = None
    decode: float | None = None
    prefill_slow: float | None = None
    decode_slow: float | None = None


class Pace:
    """One model's seconds per token in prefill and in decode, by the size of the context.

    Context sizes fall into bands that double (up to 512 tokens, to 1,024, ...), since both
    phases slow down with the context. A band without a measurement takes the nearest one's. Bands
    hold the times of a generation that runs alone; by what share each one beside it slows it down
    is learnt apart.
    """

    def __init__(self) -> None:
        self._crowding = 0.0
        self._prefill: dict[int, Average] = {}
        self._decode: dict[int, Average] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured."""
        return not self._prefill and not self._decode

    def observe(self, usage: Usage, now_s: float, beside: int = 0) -> None:
        """Learn from the usage of a generation that ran beside others; phases too short to measure
        are left out."""
        band = _band(usage.total_tokens)
        rate = usage.decode_tokens_per_s
        long_enough = usage.completion_tokens >= _MIN_DECODE_TOKENS
        if beside and rate is not None and long_enough and band in self._decode:
            slowdown = (1.0 / rate / self._decode[band].mean(now_s) - 1.0) / beside
            off = min(slowdown, _MOST_CROWDED) - self._crowding
            self._crowding = max(0.0, self._crowding + _CROWDING * off)
        crowd = self._crowd(beside)
        computed = usage.prompt_tokens - usage.cached_tokens
        if computed >= _MIN_PREFILL_TOKENS and usage.prefill_s > 0:
            average = self._prefill.setdefault(band, Average())
            average.observe(max(_LEAST_S, usage.prefill_s / computed / crowd), now_s)
        if long_enough and rate is not None:
            average = self._decode.setdefault(band, Average())
            average.observe(max(_LEAST_S, 1.0 / rate / crowd), now_s)

    def speeds(self, context_tokens: int, now_s: float, beside: int = 0) -> Speeds:
        """The speeds to expect at a size of context, beside so many other generations."""
        crowd = self._crowd(beside)
        prefill = _nearest(self._prefill, context_tokens)
        decode = _nearest(self._decode, context_tokens)
        return Speeds(
            prefill=1.0 / prefill.mean(now_s) / crowd if prefill else None,
            decode=1.0 / decode.mean(now_s) / crowd if decode else None,
            prefill_slow=1.0 / prefill.p95(now_s) / crowd if prefill else None,
            decode_slow=1.0 / decode.p95(now_s) / crowd if decode else None,
        )

    def _crowd(self, beside: int) -> float:
        """How many times longer everything takes beside so many others."""
        return 1.0 + self._crowding * beside

    def to_json(self) -> dict[str, Any]:
        """The long run of every band, in seconds per token, and what a crowd costs."""
        phases = {"prefill": self._prefill, "decode": self._decode}
        kept: dict[str, Any] = {
            name: {str(band): average.long_run for band, average in bands.items()}
            for name, bands in phases.items()
        }
        return {**kept, "crowding": self._crowding}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`. Raises ``ValueError``, ``TypeError``, ``AttributeError`` or
        ``KeyError`` for what is none."""
        pace = cls()
        pace._prefill = _bands(data["prefill"])
        pace._decode = _bands(data["decode"])
        pace._crowding = min(_MOST_CROWDED, max(0.0, float(data.get("crowding", 0.0))))
        return pace


def _bands(found: Mapping[str, Any]) -> dict[int, Average]:
    bands = {}
    for band, seconds in found.items():
        if not 0.0 < float(seconds) < math.inf:
            raise ValueError(f"{seconds!r} is no time")
        bands[int(band)] = Average(float(seconds))
    return bands


def _nearest(bands: dict[int, Average], context_tokens: int) -> Average | None:
    wanted = _band(context_tokens)
    return bands[min(bands, key=lambda band: abs(band - wanted))] if bands else None


def _band(tokens: int) -> int:
    return max(0, math.ceil(math.log2(max(tokens, 1) / _FIRST_BAND_TOKENS)))


def _told(seconds: float, most_s: float) -> float:
    """A node's word, within what was seen here; what is no time is none."""
    return min(seconds, most_s) if seconds > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class Timing:
    """When an answer's pieces came, in seconds from its start, as the caller saw them."""

    first_s: float
    total_s: float


class Stopwatch:
    """Takes the timing of one answer, from construction on."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock, self._began_s = clock, clock()
        self._first_s: float | None = None
        self._total_s = 0.0

    def lap(self) -> None:
        """A piece came."""
        self._total_s = self._clock() - self._began_s
        if self._first_s is None:
            self._first_s = self._total_s

    @property
    def timing(self) -> Timing:
        """Up to the latest piece."""
        return Timing(self._first_s or 0.0, self._total_s)


class CloudMeter:
    """What the cloud's answers took: the road, its queue, and each of its models' speeds.

    Decode is timed here; prefill and queue are what the node told in its usage, and the road is
    what is left of the time to the first token. So a node that tells wrong moves time from one to
    the other, and cannot make an answer look faster than it was.
    """

    def __init__(self) -> None:
        self._models: dict[str, Pace] = {}
        self._rtt = Average()
        self._queue = Average()
        self._failures = Average(0.0)
        self._queued: int | None = None

    def observe(self, finish: Finish, timing: Timing, now_s: float) -> None:
        """Learn from a finished answer."""
        usage = finish.usage
        queue_s = _told(usage.queue_s, timing.first_s)
        prefill_s = _told(usage.prefill_s, timing.first_s - queue_s)
        self._rtt.observe(timing.first_s - queue_s - prefill_s, now_s)
        self._queue.observe(queue_s, now_s)
        seen = Usage(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            prefill_s=prefill_s,
            decode_s=timing.total_s - timing.first_s,
        )
        self._models.setdefault(finish.model, Pace()).observe(seen, now_s)
        self._fail(0.0, now_s)

    def observe_failure(self, now_s: float) -> None:
        """Learn that a request got no answer."""
        self._fail(1.0, now_s)

    def observe_queue(self, position: int) -> None:
        """Learn how many requests the node said to be ahead."""
        self._queued = position

    def network(self, model: str, context_tokens: int, now_s: float) -> NetworkState:
        """The way to ``model`` as it is to be expected now."""
        failures = max(0.0, self._failures.mean(now_s))
        pace = self._models.get(model)
        if pace is None or self._rtt.long_run is None:
            return NetworkState(failure_share=failures, cloud_queue=self._queued)
        speeds = pace.speeds(context_tokens, now_s)
        return NetworkState(
            rtt_s=self._rtt.mean(now_s),
            rtt_slow_s=self._rtt.p95(now_s),
            cloud_queue=self._queued,
            queue_s=self._queue.mean(now_s),
            queue_slow_s=self._queue.p95(now_s),
            prefill_tokens_per_s=speeds.prefill,
            decode_tokens_per_s=speeds.decode,
            prefill_slow_tokens_per_s=speeds.prefill_slow,
            decode_slow_tokens_per_s=speeds.decode_slow,
            failure_share=failures,
        )

    def _fail(self, value: float, now_s: float) -> None:
        self._failures.observe(value, now_s)
