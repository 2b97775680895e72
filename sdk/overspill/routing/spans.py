"""Places in a text: beginning and end, in characters."""

from __future__ import annotations

from collections.abc import Iterable

Span = tuple[int, int]


def apart(spans: Iterable[Span]) -> list[Span]:
    """The spans in order, those that overlap put together."""
    together: list[Span] = []
    for start, end in sorted(spans):
        if together and start < together[-1][1]:
            together[-1] = (together[-1][0], max(end, together[-1][1]))
        else:
            together.append((start, end))
    return together
