"""A strict reader of DER (ITU-T X.690): the few types that certificates and CRLs are made of.

Only definite, minimal lengths and one-byte tags are read, and every element has to be used up:
there is one encoding of a value. ``fail`` turns one line of what was wrong into the caller's
exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from overspill.errors import OverspillError

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
NULL: Final = 0x05
OID: Final = 0x06
UTF8_STRING: Final = 0x0C
PRINTABLE_STRING: Final = 0x13
IA5_STRING: Final = 0x16
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
SET: Final = 0x31

Fail = Callable[[str], OverspillError]

_TIME_DIGITS: Final = {UTC_TIME: 12, GENERALIZED_TIME: 14}
_UTC_TIME_PIVOT: Final = 50  # RFC 5280, 4.1.2.5.1: two-digit years are 1950 to 2049


@dataclass(frozen=True, slots=True)
class Element:
    """One tag with its content; ``raw`` is the whole encoding, header included."""

    tag: int
    content: bytes
    raw: bytes


class DerReader:
    """Reads elements from front to back and checks the tag of each."""

    def __init__(self, data: bytes, fail: Fail) -> None:
        self._data = data
        self._at = 0
        self._fail = fail

    @property
    def more(self) -> bool:
        """True while bytes are left."""
        return self._at < len(self._data)

    def peek(self) -> int | None:
        """The next element's tag."""
        return self._data[self._at] if self.more else None

    def element(self, tag: int, what: str) -> Element:
        """The next element, which has to carry ``tag``."""
        found = self._next(what)
        if found.tag != tag:
            raise self._fail(f"{what} has tag {found.tag:#04x}, not {tag:#04x}")
        return found

    def optional(self, tag: int, what: str) -> Element | None:
        """The next element if it carries ``tag``."""
        return self.element(tag, what) if self.peek() == tag else None

    def children(self, tag: int, what: str) -> DerReader:
        """A reader over the content of the next element."""
        return DerReader(self.element(tag, what).content, self._fail)

    def rest(self, tag: int, what: str) -> Iterator[Element]:
        """All elements that are left, each of which carries ``tag``."""
        while self.more:
            yield self.element(tag, what)

    def end(self, what: str) -> None:
        """Fails unless every byte was read."""
        if self.more:
            raise self._fail(f"{what} is followed by {len(self._data) - self._at} bytes")

    def oid(self, what: str) -> str:
        """An object identifier in dotted form."""
        return read_oid(self.element(OID, what).content, self._fail)

    def integer(self, what: str) -> int:
        """A signed integer in its shortest form."""
        return read_integer(self.element(INTEGER, what).content, self._fail)

    def bits(self, what: str) -> bytes:
        """A bit string of whole bytes."""
        content = self.element(BIT_STRING, what).content
        if not content or content[0] != 0:
            raise self._fail(f"{what} is no bit string of whole bytes")
        return content[1:]

    def time(self, what: str) -> int:
        """A UTCTime or GeneralizedTime as Unix seconds."""
        found = self._next(what)
        digits, zone = found.content[:-1], found.content[-1:]
        if len(digits) != _TIME_DIGITS.get(found.tag) or not digits.isdigit() or zone != b"Z":
            raise self._fail(f"{what} is no time")
        year, rest = int(digits[:-10]), digits[-10:]
        if found.tag == UTC_TIME:
            year += 2000 if year < _UTC_TIME_PIVOT else 1900
        try:
            month, day, hour, minute, second = (int(rest[at : at + 2]) for at in range(0, 10, 2))
            moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
            return int(moment.timestamp())
        except ValueError as error:
            raise self._fail(f"{what} is no time") from error

    def _next(self, what: str) -> Element:
        start, data = self._at, self._data
        if start + 2 > len(data):
            raise self._fail(f"{what} is cut off at offset {start}")
        tag, size = data[start], data[start + 1]
        body = start + 2
        if tag & 0x1F == 0x1F:
            raise self._fail(f"{what} has a tag of several bytes")
        if size >= 0x80:
            body += size - 0x80
            size = self._long_length(data[start + 2 : body], size - 0x80, what)
        if body + size > len(data):
            raise self._fail(f"{what} needs {size} bytes, {max(0, len(data) - body)} are left")
        self._at = body + size
        return Element(tag, data[body : self._at], data[start : self._at])

    def _long_length(self, digits: bytes, count: int, what: str) -> int:
        size = int.from_bytes(digits, "big")
        if len(digits) != count or not 1 <= count <= 4 or digits[0] == 0 or size < 0x80:
            raise self._fail(f"{what} has a length that is not in its shortest form")
        return size


def read_oid(content: bytes, fail: Fail) -> str:
    """The dotted form of an object identifier's content."""
    if not content or content[-1] & 0x80:
        raise fail("an object identifier is cut off")
    arcs, value, is_first = [], 0, True
    for byte in content:
        if is_first and byte == 0x80:
            raise fail("an object identifier has a padded arc")
        value = value << 7 | byte & 0x7F
        is_first = not byte & 0x80
        if is_first:
            arcs.append(value)
            value = 0
    top = min(arcs[0] // 40, 2)
    return ".".join(str(arc) for arc in (top, arcs[0] - 40 * top, *arcs[1:]))


def read_integer(content: bytes, fail: Fail) -> int:
    """The value of an integer's content, which has to be in its shortest form."""
    if not content:
        raise fail("an integer is empty")
    is_padded = (
        len(content) > 1 and content[0] in (0, 0xFF) and not (content[0] ^ content[1]) & 0x80
    )
    if is_padded:
        raise fail("an integer is not in its shortest form")
    return int.from_bytes(content, "big", signed=True)
