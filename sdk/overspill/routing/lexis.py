"""A text's words, numbers and marks, found once for every stage that looks at them.

Text goes through byte tables and replacements, at the speed of C, as ASCII or as UTF-8, all of
whose bytes beyond ASCII count as letters: other marks and digits are made plain before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence, Set
from typing import NamedTuple

MAX_CHARS = 4_000
_HALF = MAX_CHARS // 2
_ENOUGH = _HALF + 100
_DIGITS_KEPT = 6
_NUMBER = re.compile(r"00*(?:[.,]00*)*")  # as 0+, and found faster: it begins with a character
_BEFORE_LETTER = re.compile(rb"0(?=[a-z\x80-\xff])")
_AFTER_LETTER = re.compile(rb"0(?<=[a-z\x80-\xff]0)")
_LONG_NUMBER = re.compile(b"0" * _DIGITS_KEPT + b"0+")


class Lexis(NamedTuple):
    """What one turn is made of; at most 4,000 characters of it, both ends of a longer one.

    ``zeroed`` is ``lower`` with each digit as ``0``, empty where there is none. ``words`` are runs
    of letters in lower case, in order, ``capitals`` how many began with a capital. ``runs`` are the
    different longest runs of letters, digits and underscores in lower case; those of digits alone
    may be missing. ``numbers`` are zeros, and may hold points and commas. ``marks`` are its ASCII
    marks, in order. ``pieces`` are words, numbers (zeros, for their digits, at most six) and single
    marks, as UTF-8 in lower case.
    """

    text: str
    lower: str
    zeroed: str
    words: Sequence[str]
    capitals: int
    runs: Set[str]
    numbers: Sequence[str]
    marks: bytes
    pieces: Sequence[bytes]

    def count_before_space(self, mark: str) -> int:
        """How often an ASCII mark stands before a space: what ends a sentence does."""
        return self.text.count(mark + " ") if mark.encode() in self.marks else 0


def lexis_of(text: str) -> Lexis:
    """The lexis of a text in whatever spacing."""
    return lexis_of_ends(both_ends(text))


def lexis_of_ends(text: str) -> Lexis:
    """The lexis of what :func:`both_ends` returned."""
    return _of_ascii(text) if text.isascii() else _of_any(text)


def both_ends(text: str) -> str:
    """A text in single spaces, and of a long one both ends: the request stands at one of them."""
    if len(text) > 2 * _ENOUGH:
        # The middle is not looked at, unless an end is spaces in large part.
        head, tail = _spaced(text[:_ENOUGH]), _spaced(text[-_ENOUGH:])
        if len(head) > _HALF and len(tail) > _HALF:
            return f"{head[:_HALF].strip()} {tail[-_HALF:].strip()}"
    text = _spaced(text)
    if len(text) <= MAX_CHARS:
        return text
    return f"{text[:_HALF].strip()} {text[-_HALF:].strip()}"


def _spaced(text: str) -> str:
    if not text.isascii():
        return " ".join(text.split())
    text = text.encode("ascii").translate(_SPACES).decode()
    while "  " in text:
        text = text.replace("  ", " ")
    return text.strip()


def not_ascii(text: str) -> set[str]:
    """The different characters beyond ASCII."""
    raw = text.encode("utf-8", "surrogatepass").translate(None, _ASCII)
    return set(raw.decode("utf-8", "surrogatepass"))


def _of_ascii(text: str) -> Lexis:
    raw = text.encode("ascii")
    capitals = (b" " + raw.translate(_CAPITALS)).count(b" A")
    return _lexis(text, raw.translate(_LOWER).decode(), capitals, raw, raw, raw)


def _of_any(text: str) -> Lexis:
    lower = text.lower()
    odd = not_ascii(lower)
    plain = _replaced(lower, filter(str.isdecimal, odd), "0")
    marks = [character for character in odd if not character.isalnum()]
    return _lexis(
        text,
        lower,
        _capitals(text),
        plain.encode(),
        _replaced(plain, marks, " ").encode(),
        _replaced(plain, marks, " {} ").encode(),
    )


def _replaced(text: str, characters: Iterable[str], form: str) -> str:
    for character in characters:
        text = text.replace(character, form.format(character))
    return text


def _capitals(text: str) -> int:
    odd = not_ascii(text)
    plain = _replaced(text, filter(str.isupper, odd), "A")
    # Whatever else is left of them is a letter, and an ASCII question mark is none.
    gaps = [ch for ch in odd if ch.isdecimal() or not ch.isalnum()]
    plain = _replaced(plain, ["?", *gaps], " ")
    return (b" " + plain.encode("ascii", "replace").translate(_CAPITALS_OR_ODD)).count(b" A")


def _lexis(
    text: str, lower: str, capitals: int, raw: bytes, unmarked: bytes, spaced: bytes
) -> Lexis:
    """``raw`` has digits in ASCII; of marks beyond ASCII ``unmarked`` has none, and in ``spaced``
    they stand by themselves."""
    kinds = unmarked.translate(_KINDS)
    has_digits = b"0" in kinds
    mixed = has_digits and (b"a0" in kinds or b"0a" in kinds)
    words = unmarked.translate(_WORDS).decode().split()
    zeroed = raw.translate(_ZEROED).decode() if has_digits else ""
    marks = raw.translate(None, _NO_MARKS)
    runs = set(unmarked.translate(_RUNS).decode().split() if mixed or b"_" in kinds else words)
    numbers = _NUMBER.findall(zeroed) if has_digits else ()
    pieces = _pieces(spaced.translate(_PIECES), marks, mixed)
    return Lexis(text, lower, zeroed, words, capitals, runs, numbers, marks, pieces)


def _pieces(zeroed: bytes, marks: bytes, mixed: bool) -> list[bytes]:
    for code in set(marks):
        zeroed = zeroed.replace(*_APART[code])
    if mixed:
        zeroed = _BEFORE_LETTER.sub(b"0 ", _AFTER_LETTER.sub(b" 0", zeroed))
    if _TOO_LONG in zeroed:
        zeroed = _LONG_NUMBER.sub(b"0" * _DIGITS_KEPT, zeroed)
    return zeroed.split()


def _table(of: Callable[[str], str], beyond: str = "") -> bytes:
    """A byte table: for each ASCII character what ``of`` says, ``""`` for its lower case; bytes
    beyond ASCII stay as they are, or are one character."""
    ascii_part = [ord(of(ch) or ch.lower()) for ch in map(chr, range(0x80))]
    return bytes([*ascii_part, *(ord(beyond) if beyond else code for code in range(0x80, 0x100))])


def _is_mark(character: str) -> bool:
    return not (character.isalnum() or character.isspace() or character == "_")


_ASCII = bytes(range(0x80))
_TOO_LONG = b"0" * (_DIGITS_KEPT + 1)
_SPACES = _table(lambda ch: " " if ch.isspace() else ch)
_LOWER = _table(lambda ch: "")
_ZEROED = _table(lambda ch: "0" if ch.isdigit() else "")
_PIECES = _table(lambda ch: "0" if ch.isdigit() else " " if ch.isspace() or ch == "_" else "")
_WORDS = _table(lambda ch: "" if ch.isalpha() else " ")
_RUNS = _table(lambda ch: "" if ch.isalnum() or ch == "_" else " ")
_KINDS = _table(
    lambda ch: "a" if ch.isalpha() else "0" if ch.isdigit() else "_" if ch == "_" else " ", "a"
)
_CAPITALS = _table(lambda ch: "A" if ch.isupper() else "a" if ch.islower() else " ")
_CAPITALS_OR_ODD = _CAPITALS[: ord("?")] + b"a" + _CAPITALS[ord("?") + 1 :]
_NO_MARKS = bytes(code for code in range(0x100) if code >= 0x80 or not _is_mark(chr(code)))
_APART = {
    ord(ch): (ch.encode(), f" {ch} ".encode()) for ch in map(chr, range(0x80)) if _is_mark(ch)
}
