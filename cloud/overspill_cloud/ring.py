"""What a stream sent, byte for byte, kept so that a lost connection loses nothing.

An index is never sealed twice: whoever comes back gets the very frames that he missed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable


class FrameGone(LookupError):
    """The frame is no longer kept, or was never sealed."""


class FrameRing:
    """The last sealed frames of one stream: at most ``max_bytes``, none older than ``keep_s``.

    Frames that nobody has read yet are never let go: a writer waits for its reader instead.
    ``clock`` gives seconds. A frame of a word is a hundred bytes, and as an object of its own, with
    its time, it would take two hundred: all lie in one piece, with where each ends beside.
    """

    def __init__(self, max_bytes: int, keep_s: float, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._clock = clock
        self._data = bytearray()
        self._ends = array("Q")
        """Where each kept frame ends, counted from the first byte that was ever kept."""
        self._times = array("d")
        self._gone_bytes = 0
        self._first = 0
        self.is_closed = False
        """Nothing follows."""

    @property
    def size_bytes(self) -> int:
        """What is kept."""
        return len(self._data)

    @property
    def end(self) -> int:
        """The index of the next frame."""
        return self._first + len(self._ends)

    def append(self, frame: bytes, *, closes: bool = False) -> None:
        """Keep the next frame, and let go of what is too old or too much."""
        now = self._clock()
        self._data += frame
        self._ends.append(self._gone_bytes + len(self._data))
        self._times.append(now)
        self.is_closed = closes
        if len(self._data) > self._max_bytes or self._times[0] < now - self._keep_s:
            self._let_go(now - self._keep_s)

    def read(self, index: int) -> bytes | None:
        """Frame ``index``; None when it is the next one. Raises ``FrameGone``."""
        if index == self.end:
            return None
        if not self._first <= index < self.end:
            raise FrameGone(f"Frame {index} is not among {self._first} to {self.end - 1}.")
        return self._frame(index - self._first)

    def read_on(self, index: int, max_bytes: int) -> list[bytes]:
        """The frames from ``index`` on, at least one, of at most so many bytes together; none when
        it is the next one. Raises ``FrameGone``."""
        first = self.read(index)
        if first is None:
            return []
        found, size = [first], len(first)
        for at in range(index + 1 - self._first, len(self._ends)):
            frame = self._frame(at)
            size += len(frame)
            if size > max_bytes:
                break
            found.append(frame)
        return found

    def _frame(self, at: int) -> bytes:
        begin = self._ends[at - 1] - self._gone_bytes if at else 0
        return bytes(self._data[begin : self._ends[at] - self._gone_bytes])

    def _let_go(self, oldest_s: float) -> None:
        """Of the oldest frames; the newest one stays."""
        end_bytes = self._gone_bytes + len(self._data)
        count = 0
        while count < len(self._ends) - 1 and (
            end_bytes - (self._ends[count - 1] if count else self._gone_bytes) > self._max_bytes
            or self._times[count] < oldest_s
        ):
            count += 1
        if count:
            gone_bytes = self._ends[count - 1]
            del self._data[: gone_bytes - self._gone_bytes], self._ends[:count], self._times[:count]
            self._gone_bytes = gone_bytes
            self._first += count
