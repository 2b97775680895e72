"""Keeps what a model thinks aloud, ``<think>...</think>`` before its answer, apart from it."""

from __future__ import annotations

from collections.abc import Generator

from overspill.engines.dialects.base import END, CallParser, Reading

OPEN, CLOSE = "<think>", "</think>"


class ReasoningParser(CallParser):
    """Text up to ``</think>`` is reasoning where the answer opens with ``<think>``, or where
    ``is_open`` says that the prompt already did. White space about both belongs to the format.

    It finds no calls: what it hands out as text goes on to the parser of the model's dialect.
    """

    def __init__(self, *, is_open: bool) -> None:
        self._is_open = is_open
        super().__init__((), id_prefix="")

    def _read(self) -> Reading:
        opened = self._is_open or (yield from self._opens())
        if opened:
            yield from self._thoughts()
        begun = not opened
        while (char := (yield)) != END:
            begun = begun or not char.isspace()
            self._say(char if begun else "")

    def _opens(self) -> Generator[None, str, bool]:
        """Read white space and ``<think>``; anything else is text."""
        white = found = ""
        while found != OPEN:
            char = yield
            if not found and char.isspace():
                white += char
            elif char != END and OPEN.startswith(found + char):
                found += char
            else:
                self._say(white + found)
                self._read_again(char)
                return False
        return True

    def _thoughts(self) -> Reading:
        """Hand out reasoning up to ``</think>``."""
        white = held = ""
        begun = False
        while held != CLOSE:
            char = yield
            if char == END:
                self._think((white if begun else "") + held)
                return
            held += char
            while held and not CLOSE.startswith(held):
                if held[0].isspace():
                    white += held[0]
                else:
                    self._think((white if begun else "") + held[0])
                    begun, white = True, ""
                held = held[1:]
