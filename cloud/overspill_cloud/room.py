"""Whether there is room for one more stream, and for whom: pure counting, no clock, no I/O.

Three things run out. The queue: a stream that is admitted is run or waits in the engine's own
queue, and a queue that is too long serves nobody. The KV cache: what is admitted reserves prompt
and answer. A device's share. The batch lane gives up the last quarter of the queue and of the
cache to the interactive one, so that a flood of batch work never shuts people out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from overspill.errors import BusyError
from overspill.types.chat import Lane, Request
from overspill_cloud.limits import AdmissionLimits

BYTES_PER_TOKEN: Final = 3
"""Text is counted, not tokenized, before it is admitted: a little more than it will be."""
ASSUMED_ANSWER_TOKENS: Final = 512
"""For a request that names no ``max_tokens``."""
IMAGE_TOKENS: Final = 1024
"""For each image, whose bytes say nothing of its tokens: projectors make some hundreds of them to
some thousands."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of a model: its lane, its KV tokens, and how many the model has."""

    model: str
    lane: Lane = "interactive"
    kv_tokens: int = 0
    kv_capacity: int | None = None


def kv_demand(request: Request) -> int:
    """KV tokens that a request may come to take, estimated from the length of its prompt."""
    said = sum(len(text.encode()) for text in _prompt_texts(request))
    images = sum(len(message.images) for message in request.messages)
    prompt = said // BYTES_PER_TOKEN + IMAGE_TOKENS * images
    return prompt + (request.max_tokens or ASSUMED_ANSWER_TOKENS)


def _prompt_texts(request: Request) -> Iterator[str]:
    """What a template writes out. A schema or grammar of the answer is not of it: it is compiled,
    and holds the sampler."""
    yield request.prefix
    for message in request.messages:
        yield message.content
        for call in message.tool_calls:
            yield call.name
            yield call.arguments
    for tool in request.tools:
        yield tool.name
        yield tool.description
        yield json.dumps(tool.parameters, ensure_ascii=False)


class Room:
    """Counts what is taken."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self._by_device: Counter[bytes] = Counter()
        self._by_lane: Counter[str] = Counter()
        self._kv: Counter[str] = Counter()

    @property
    def streams(self) -> int:
        """Streams that hold a place."""
        return self._by_device.total()

    @property
    def max_streams(self) -> int:
        """Places there are."""
        return self._limits.max_streams

    def in_lane(self, lane: str) -> int:
        """Streams of a lane that hold a place."""
        return self._by_lane[lane]

    def kv_taken(self, model: str) -> int:
        """KV tokens of a model that are admitted."""
        return self._kv[model]

    def check_any(self) -> None:
        """Raise ``BusyError`` (QUEUE_FULL) when there is no place for anybody."""
        if self.streams >= self._limits.max_streams:
            raise self._busy("QUEUE_FULL", f"All {self._limits.max_streams} streams are taken.")

    def take(self, device: bytes, demand: Demand) -> Callable[[], None]:
        """Take a place; returns what gives it back, once.

        Raises ``BusyError`` with the reason QUEUE_FULL, KV_FULL or QUOTA.
        """
        self._check_queue(demand)
        self._check_kv(demand)
        if self._by_device[device] >= self._limits.max_streams_per_device:
            raise self._busy(
                "QUOTA", f"This device has {self._limits.max_streams_per_device} streams already."
            )
        self._by_device[device] += 1
        self._by_lane[demand.lane] += 1
        self._kv[demand.model] += demand.kv_tokens
        held = [device]

        def release() -> None:
            if held:
                held.clear()
                self._by_lane[demand.lane] -= 1
                self._kv[demand.model] -= demand.kv_tokens
                self._by_device[device] -= 1
                if not self._by_device[device]:
                    del self._by_device[device]  # devices without streams are not remembered

        return release

    def _check_queue(self, demand: Demand) -> None:
        self.check_any()
        limits = self._limits
        if demand.lane == "batch":
            share = max(1, int(limits.max_streams * limits.batch_share))
            if self._by_lane["batch"] >= share:
                raise self._busy("QUEUE_FULL", f"All {share} streams of the batch lane are taken.")

    def _check_kv(self, demand: Demand) -> None:
        if demand.kv_capacity is None:
            return
        most = demand.kv_capacity * self._limits.kv_queue_factor
        if demand.lane == "batch":
            most *= self._limits.batch_share
        taken = self._kv[demand.model]
        # One that is alone is the engine's to judge: it knows the exact numbers.
        if taken and taken + demand.kv_tokens > most:
            raise self._busy("KV_FULL", f"The cache of {demand.model} is taken for some time.")

    def _busy(self, reason: str, message: str) -> BusyError:
        return BusyError(
            f"{message} ({reason})",
            mend="Try again later.",
            retry_after_s=self._limits.retry_after_s,
            reason=reason,
        )
