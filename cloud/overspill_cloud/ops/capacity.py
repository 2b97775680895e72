"""How many nodes a load needs: arithmetic over what was measured, and nothing assumed in silence.

A stream reads ``prompt_tokens`` once and writes ``answer_tokens`` at no less than
``tokens_per_s``. A node runs the most streams at which each still gets that, by the measured
levels (linear between them, nothing beyond the last); ``use_at_most`` of it is planned with, and
``spare`` nodes may be down, drained or upgraded.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from overspill.errors import UsageError

_RATE: Final = re.compile(r"engine\.streams?(\d+)\.([^.]+)\.tokens_per_s")


@dataclass(frozen=True, slots=True)
class Level:
    """``aggregate_tokens_per_s`` of ``streams`` that ran together, prompts' time included."""

    streams: int
    aggregate_tokens_per_s: float

    @property
    def each_tokens_per_s(self) -> float:
        """What one of them gets."""
        return self.aggregate_tokens_per_s / self.streams


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be served at the busiest moment."""

    streams: int
    tokens_per_s: float = 10.0
    prompt_tokens: int = 512
    answer_tokens: int = 256
    use_at_most: float = 0.7
    spare: int = 1

    def __post_init__(self) -> None:
        numbers = (self.streams, self.prompt_tokens, self.answer_tokens)
        if min(numbers) < 1 or self.tokens_per_s <= 0 or self.spare < 0:
            raise UsageError("A load has streams, tokens and a rate, all above 0.")
        if not 0 < self.use_at_most <= 1:
            raise UsageError("--use-at-most is a share, above 0 and at most 1.")


@dataclass(frozen=True, slots=True)
class Plan:
    """``by_speed`` and ``by_kv`` are streams of one node; the smaller one counts. ``by_kv`` None:
    the model's cache was not told."""

    nodes: int
    streams_per_node: int
    by_speed: int
    by_kv: int | None
    kv_tokens_per_stream: int
    kv_tokens_per_node: int | None
    requests_per_s: float
    tokens_per_s: float
    memory_bytes_per_node: int

    def as_dict(self) -> dict[str, Any]:
        """One JSON document."""
        return asdict(self)


def plan(
    load: Load, levels: Sequence[Level], *, kv_tokens: int | None, memory_bytes: int = 0
) -> Plan:
    """The nodes for a load. ``kv_tokens`` is what a node's cache holds.

    Raises ``UsageError`` where one stream alone is too slow, or does not fit the cache.
    """
    by_speed = streams_at(levels, load.tokens_per_s)
    if by_speed < 1:
        best = max((level.each_tokens_per_s for level in levels), default=0.0)
        raise UsageError(
            f"One stream alone gets {best:.1f} tokens/s here, and {load.tokens_per_s:g} are asked.",
            mend="Ask for fewer (--tokens-per-s), or use a smaller model or a faster machine.",
        )
    per_stream = load.prompt_tokens + load.answer_tokens
    by_kv = None if kv_tokens is None else kv_tokens // per_stream
    if by_kv == 0:
        raise UsageError(
            f"A stream takes {per_stream} KV tokens, and a node has {kv_tokens}.",
            mend="Give it more (--slots, --context), or shorten prompts or answers.",
        )
    most = by_speed if by_kv is None else min(by_speed, by_kv)
    each = max(1, math.floor(most * load.use_at_most))
    return Plan(
        nodes=math.ceil(load.streams / each) + load.spare,
        streams_per_node=each,
        by_speed=by_speed,
        by_kv=by_kv,
        kv_tokens_per_stream=per_stream,
        kv_tokens_per_node=kv_tokens,
        requests_per_s=load.streams * load.tokens_per_s / load.answer_tokens,
        tokens_per_s=load.streams * load.tokens_per_s,
        memory_bytes_per_node=memory_bytes,
    )


def streams_at(levels: Sequence[Level], tokens_per_s: float) -> int:
    """The most streams that each still get ``tokens_per_s``, by linear interpolation of what was
    measured; never more than were measured together, 0 where one alone gets less."""
    ordered = sorted(levels, key=lambda level: level.streams)
    best = 0
    if ordered and ordered[0].each_tokens_per_s >= tokens_per_s:
        best = ordered[0].streams
    for low, high in itertools.pairwise(ordered):
        for streams in range(low.streams, high.streams + 1):
            share = (streams - low.streams) / (high.streams - low.streams)
            gap = high.aggregate_tokens_per_s - low.aggregate_tokens_per_s
            if (low.aggregate_tokens_per_s + share * gap) / streams >= tokens_per_s:
                best = max(best, streams)
    return best


def levels_from(document: Mapping[str, Any], model: str) -> list[Level]:
    """The levels in the JSON of ``overspill-cloud plan --json``, or of ``overspill bench engine``:
    there the figures ``engine.streams<N>.<shape>.tokens_per_s``. Raises ``UsageError``."""
    if "levels" in document:
        return [
            Level(int(one["streams"]), float(one["aggregate_tokens_per_s"]))
            for one in document["levels"]
        ]
    found = []
    for figure in document.get("figures", ()):
        rate = _RATE.fullmatch(str(figure.get("name", "")))
        if rate and rate[2] == model and figure.get("value") is not None:
            found.append(Level(int(rate[1]), float(figure["value"])))
    if not found:
        raise UsageError(
            f"There are no measured streams of '{model}' in that file.",
            mend="Leave --measured out: then the model is measured now.",
        )
    return found
