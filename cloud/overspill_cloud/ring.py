"""What a stream sent, byte for byte, kept so that a lost connection loses nothing.

An index is never sealed twice: whoever comes back gets the very frames that he missed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class FrameGone(LookupError):
    """The frame is no longer kept, or was never sealed."""


class FrameRing:
    """The last sealed frames of one stream: at most ``max_bytes``, none older than ``keep_s``.

    Frames that nobody has read yet are never let go: a writer waits for its reader instead.
    ``clock`` gives seconds.
    """

    def __init__(self, max_bytes: int, keep_s: float, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._clock = clock
        self._frames: deque[tuple[float, bytes]] = deque()
        self._first = 0
        self.size_bytes = 0
        self.is_closed = False
        """Nothing follows."""

    @property
    def end(self) -> int:
        """The index of the next frame."""
        return self._first + len(self._frames)

    def append(self, frame: bytes, *, closes: bool = False) -> None:
        """Keep the next frame, and let go of what is too old or too much."""
        now = self._clock()
        self._frames.append((now, frame))
        self.size_bytes += len(frame)
        self.is_closed = closes
        oldest = now - self._keep_s
        while len(self._frames) > 1 and (
            self.size_bytes > self._max_bytes or self._frames[0][0] < oldest
        ):
            self.size_bytes -= len(self._frames.popleft()[1])
            self._first += 1

    def read(self, index: int) -> bytes | None:
        """Frame ``index``; None when it is the next one. Raises ``FrameGone``."""
        if index == self.end:
            return None
        if not self._first <= index < self.end:
            raise FrameGone(f"Frame {index} is not among {self._first} to {self.end - 1}.")
        return self._frames[index - self._first][1]

    def read_on(self, index: int, max_bytes: int) -> list[bytes]:
        """The frames from ``index`` on, at least one, of at most so many bytes together; none when
        it is the next one. Raises ``FrameGone``."""
        first = self.read(index)
        if first is None:
            return []
        found, size = [first], len(first)
        for at in range(index + 1 - self._first, len(self._frames)):
            frame = self._frames[at][1]
            size += len(frame)
            if size > max_bytes:
                break
            found.append(frame)
        return found
