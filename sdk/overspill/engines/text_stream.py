"""From tokens' bytes to text that may be shown: whole characters, and no part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


def longest_held_suffix(text: str, marks: Sequence[str]) -> int:
    """Length of the longest suffix of ``text`` that a mark begins with, but not a whole mark."""
    longest = 0
    for mark in marks:
        for size in range(min(len(mark) - 1, len(text)), longest, -1):
            if text.endswith(mark[:size]):
                longest = size
                break
    return longest


class Utf8Stream:
    """Bytes in, whole characters out; what never becomes UTF-8 turns into U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """The characters that are complete now."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left when no more bytes come."""
        return self._decoder.decode(b"", True)


class StopStrings:
    """Holds text back while it may still become a stop string.

    ``found`` is the one that was complete.
    The stop that is complete first wins, and of two that end together the longer; so the result
    doesn't depend on how the text was split.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self.found is not None

    def feed(self, text: str) -> str:
        """Text that can be released."""
        if not self._stops:
            return text
        if self.stopped:
            return ""
        pending = self._held + text
        cut = self._first_stop(pending)
        if cut is not None:
            at, self.found = cut
            self._held = ""
            return pending[:at]
        keep = len(pending) - longest_held_suffix(pending, self._stops)
        self._held = pending[keep:]
        return pending[:keep]

    def flush(self) -> str:
        """The held text, once it is sure that no stop string follows."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        """Where it begins, and which it is."""
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found)[1:] if found else None
