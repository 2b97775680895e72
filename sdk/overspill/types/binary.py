"""Strict reading and writing of big-endian, length-prefixed byte layouts.

A length that points past the end fails: a Python slice would silently return less.
"""

from __future__ import annotations

from collections.abc import Callable

from overspill.errors import OverspillError


class ByteReader:
    """Reads ``data`` from front to back; whatever is wrong is raised through ``fail``.

    ``fail`` turns one line of what was wrong into the reader's owner's only exception type.
    """

    def __init__(self, data: bytes, fail: Callable[[str], OverspillError]) -> None:
        self._data = data
        self._at = 0
        self._fail = fail

    @property
    def position(self) -> int:
        """How many bytes were read."""
        return self._at

    def take(self, size: int, what: str) -> bytes:
        """Exactly ``size`` bytes."""
        end = self._at + size
        if end > len(self._data):
            left = len(self._data) - self._at
            raise self._fail(f"{what} needs {size} bytes at offset {self._at}, {left} are left")
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def uint(self, size: int, what: str) -> int:
        """An unsigned big-endian integer of ``size`` bytes."""
        return int.from_bytes(self.take(size, what), "big")

    def prefixed(self, prefix_size: int, what: str, *, max_bytes: int) -> bytes:
        """Bytes after their own length, which is an integer of ``prefix_size`` bytes."""
        size = self.uint(prefix_size, f"the length of {what}")
        if size > max_bytes:
            raise self._fail(f"{what} claims {size} bytes, at most {max_bytes} are allowed")
        return self.take(size, what)

    def text(self, prefix_size: int, what: str, *, max_bytes: int) -> str:
        """As :meth:`prefixed`, decoded as strict UTF-8."""
        try:
            return self.prefixed(prefix_size, what, max_bytes=max_bytes).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._fail(f"{what} is not UTF-8") from error

    def end(self, what: str) -> None:
        """Fails unless every byte was read."""
        left = len(self._data) - self._at
        if left:
            raise self._fail(f"{what} is followed by {left} bytes that belong to nothing")


def prefixed(prefix_size: int, data: bytes) -> bytes:
    """``data`` after its length in ``prefix_size`` bytes; the inverse of ByteReader.prefixed."""
    return len(data).to_bytes(prefix_size, "big") + data
