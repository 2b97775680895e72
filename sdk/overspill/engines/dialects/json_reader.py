"""Reads one JSON object (RFC 8259) character by character and says when it stops being one."""

from __future__ import annotations

import json
import re
from enum import Enum, auto

MAX_DEPTH = 128

_SPACE = " \t\n\r"
_LITERALS = ("true", "false", "null")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER_CHARS = frozenset("0123456789+-.eE")
_LETTERS = frozenset("aeflnrstu")
_ESCAPES = frozenset('"\\/bfnrtu')
_HEX = frozenset("0123456789abcdefABCDEF")


class _Expect(Enum):
    START = auto()
    VALUE = auto()
    VALUE_OR_END = auto()
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    COMMA_OR_END = auto()


class ObjectReader:
    """Takes the characters of an object; knows its own members, not those of inner objects.

    ``key`` is the member that is being read and ``grown`` what the last character added to its
    value, as it was written (``at_value_start``: it began it). ``members`` holds the raw text of
    complete values; a name that comes twice keeps its last one, as with most parsers.
    """

    def __init__(self) -> None:
        self.key: str | None = None
        self.grown = ""
        self.members: dict[str, str] = {}
        self.done = False
        self._raw: list[str] = []
        self._value: list[str] = []
        self._open: list[str] = []
        self._expect = _Expect.START
        self._string: list[str] | None = None
        self._scalar = ""
        self._hex_left = 0
        self._escaped = False

    @property
    def raw(self) -> str:
        """All characters that were accepted."""
        return "".join(self._raw)

    @property
    def at_value_start(self) -> bool:
        """Whether the last character began the member's value."""
        return len(self._value) == 1 and bool(self.grown)

    def push(self, char: str) -> bool:
        """Take one character; False when no object can come of it any more."""
        self.grown = ""
        if self.done:
            return False
        in_value = self.key is not None and bool(self._value or char not in _SPACE + ":")
        if not self._take(char):
            return False
        self._raw.append(char)
        if in_value and self.key is not None and not self._is_behind_value(char):
            self._value.append(char)
            self.grown = char
        return True

    def _is_behind_value(self, char: str) -> bool:
        complete = self._expect is _Expect.COMMA_OR_END and len(self._open) == 1
        return complete and self._string is None and char in _SPACE

    def _take(self, char: str) -> bool:
        if self._string is not None:
            return self._take_in_string(self._string, char)
        if self._scalar:
            if char in _NUMBER_CHARS or char in _LETTERS:
                self._scalar += char
                return self._may_be_scalar()
            if not self._end_scalar():
                return False
        return char in _SPACE or self._take_structure(char)

    def _take_in_string(self, string: list[str], char: str) -> bool:
        if self._names_member():
            string.append(char)
        if self._hex_left:
            self._hex_left -= 1
            return char in _HEX
        if self._escaped:
            self._escaped = False
            self._hex_left = 4 if char == "u" else 0
            return char in _ESCAPES
        if char == '"':
            self._end_string(string)
        self._escaped = char == "\\"
        return char >= " "

    def _names_member(self) -> bool:
        return self._expect is _Expect.COLON and len(self._open) == 1

    def _end_string(self, string: list[str]) -> None:
        self._string = None
        if self._names_member():
            self.key = str(json.loads("".join(string)))
        elif self._expect is not _Expect.COLON:
            self._expect = _Expect.COMMA_OR_END

    def _may_be_scalar(self) -> bool:
        if self._scalar[0] in _LETTERS:
            return any(literal.startswith(self._scalar) for literal in _LITERALS)
        return all(char in _NUMBER_CHARS for char in self._scalar)

    def _end_scalar(self) -> bool:
        scalar, self._scalar = self._scalar, ""
        self._expect = _Expect.COMMA_OR_END
        return scalar in _LITERALS or _NUMBER.fullmatch(scalar) is not None

    def _take_structure(self, char: str) -> bool:
        expect = self._expect
        if expect is _Expect.START:
            return char == "{" and self._begin(char)
        if char in "}]":
            return self._end(char)
        if expect in (_Expect.KEY, _Expect.KEY_OR_END):
            self._string, self._expect = [char], _Expect.COLON
            return char == '"'
        if expect is _Expect.COLON:
            self._expect = _Expect.VALUE
            return char == ":"
        if expect is _Expect.COMMA_OR_END:
            self._end_member()
            self._expect = _Expect.KEY if self._open[-1] == "{" else _Expect.VALUE
            return char == ","
        return self._begin_value(char)

    def _begin_value(self, char: str) -> bool:
        if char in "{[":
            return self._begin(char)
        if char == '"':
            self._string = [char]
            return True
        self._scalar = char
        return char in _LETTERS or char in _NUMBER_CHARS

    def _begin(self, char: str) -> bool:
        self._open.append(char)
        self._expect = _Expect.KEY_OR_END if char == "{" else _Expect.VALUE_OR_END
        return len(self._open) <= MAX_DEPTH

    def _end(self, char: str) -> bool:
        empty = _Expect.KEY_OR_END if char == "}" else _Expect.VALUE_OR_END
        if self._expect not in (empty, _Expect.COMMA_OR_END):
            return False
        if self._open[-1] != ("{" if char == "}" else "["):
            return False
        self._end_member()
        self._open.pop()
        self._expect = _Expect.COMMA_OR_END
        self.done = not self._open
        return True

    def _end_member(self) -> None:
        if len(self._open) == 1 and self.key is not None:
            self.members[self.key] = "".join(self._value)
            self.key, self._value = None, []
