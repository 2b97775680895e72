"""How long answers will be: by what earlier answers of the same kind were.

A kind is an app, whether tools or a form are asked for, and the size of the prompt. Lengths are
skewed, so their logarithms are averaged. Only counts are kept, of at most 256 kinds.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from overspill.routing.situation import AnswerLength
from overspill.types.chat import Request
from overspill.types.usage import Usage

MAX_KINDS = 256
_WEIGHT = 0.1
_FIRST_SPREAD = 0.25
"""Variance of a logarithm where one answer was seen: e**0.5 either way."""
_LEAST_SEEN = 3


@dataclass(slots=True)
class _History:
    mean: float
    variance: float = _FIRST_SPREAD
    seen: int = 1


class AnswerLengths:
    """Learns the lengths of finished answers. Belongs to one event loop."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[tuple[str, str, int], _History] = OrderedDict()

    def observe(self, request: Request, usage: Usage) -> None:
        """Learn from a finished answer. One cut off by ``max_tokens`` was to be longer: it may
        only raise what is expected."""
        if usage.completion_tokens < 1:
            return
        value, kind = math.log(usage.completion_tokens), _kind(request)
        history = self._kinds.get(kind)
        cut = request.max_tokens is not None and usage.completion_tokens >= request.max_tokens
        if history is None:
            self._kinds[kind] = _History(value)
        elif not cut or value > history.mean:
            weight = max(_WEIGHT, 1.0 / (history.seen + 1))
            off = value - history.mean
            history.mean += weight * off
            history.variance = (1.0 - weight) * (history.variance + weight * off * off)
            history.seen += 1
        self._kinds.move_to_end(kind)
        while len(self._kinds) > MAX_KINDS:
            self._kinds.popitem(last=False)

    def expected(self, request: Request) -> AnswerLength | None:
        """What answers of the request's kind were like; None before three were seen."""
        history = self._kinds.get(_kind(request))
        if history is None or history.seen < _LEAST_SEEN:
            return None
        variance = min(history.variance, 1.0)
        mean = math.exp(history.mean + variance / 2.0)  # of a log-normal distribution
        return AnswerLength(mean, mean * math.sqrt(math.expm1(variance)))


def _kind(request: Request) -> tuple[str, str, int]:
    form = "form" if request.needs_constraint else "free"
    form = "tools" if request.offers_tools else form
    characters = sum(len(message.content) for message in request.messages)
    return request.app, form, characters.bit_length() // 2
