"""A text's words, numbers and marks, found once for every stage that looks at them.

ASCII, which most prompts are, goes through byte tables at the speed of C; any other text through
regular expressions that say the same.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass

MAX_CHARS = 4_000
_DIGITS_KEPT = 6
_WORD = re.compile(r"[^\W\d_]+")
_RUN = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_PIECE = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")
_ASCII_PIECE = re.compile(rb"[a-z]+|0+|[^ ]")
_LONG_NUMBER = re.compile("0" * _DIGITS_KEPT + "0+")
_LONG_ASCII_NUMBER = re.compile(b"0" * _DIGITS_KEPT + b"0+")


@dataclass(frozen=True, slots=True)
class Lexis:
    """What one turn is made of; at most 4,000 characters of it, both ends of a longer one.

    ``words`` are runs of letters in lower case, in order, ``capitals`` how many began with a
    capital. ``runs`` are the different longest runs of letters, digits and underscores in lower
    case. ``numbers`` may hold points and commas. ``pieces`` are words, numbers (zeros, for their
    digits, at most six) and single marks, as UTF-8 in lower case.
    """

    text: str
    lower: str
    words: tuple[str, ...]
    capitals: int
    runs: Set[str]
    numbers: tuple[str, ...]
    pieces: tuple[bytes, ...]


def lexis_of(text: str) -> Lexis:
    """The lexis of a text in its normal form: single spaces, none at its ends."""
    text = _clip(text)
    return _of_ascii(text) if text.isascii() else _of_any(text)


def _clip(text: str) -> str:
    """Both ends of a long text: the request stands at one of them."""
    if len(text) <= MAX_CHARS:
        return text
    half = MAX_CHARS // 2
    return f"{text[:half].strip()} {text[-half:].strip()}"


def _of_ascii(text: str) -> Lexis:
    raw = text.encode("ascii")
    lower = text.lower()
    zeroed = raw.translate(_PIECES)
    if b"0" in zeroed:
        numbers = tuple(_NUMBER.findall(text))
        zeroed = _LONG_ASCII_NUMBER.sub(b"0" * _DIGITS_KEPT, zeroed)
    else:
        numbers = ()
    return Lexis(
        text=text,
        lower=lower,
        words=tuple(raw.translate(_WORDS).decode().split()),
        capitals=(b" " + raw.translate(_CAPITALS)).count(b" A"),
        runs=frozenset(raw.translate(_RUNS).decode().split()),
        numbers=numbers,
        pieces=tuple(_ASCII_PIECE.findall(zeroed)),
    )


def _of_any(text: str) -> Lexis:
    lower = text.lower()
    digits = {ord(ch): "0" for ch in set(lower) if ch.isdecimal()}
    zeroed = _LONG_NUMBER.sub("0" * _DIGITS_KEPT, lower.translate(digits)) if digits else lower
    pieces = _PIECE.findall(zeroed)
    return Lexis(
        text=text,
        lower=lower,
        words=tuple(_WORD.findall(lower)),
        capitals=sum([word[0].isupper() for word in _WORD.findall(text)]),
        runs=frozenset(_RUN.findall(lower)),
        numbers=tuple(_NUMBER.findall(text)) if digits else (),
        pieces=tuple("\n".join(pieces).encode().split(b"\n")) if pieces else (),
    )


def _table(*, digits: str, capital: str, mark: str, underscore: str) -> bytes:
    """A byte table for ASCII: lower-case letters; the rest as said, ``""`` for itself."""

    def of(character: str) -> str:
        if character.isupper():
            return capital or character.lower()
        if character.islower():
            return "a" if capital else character
        if character.isdigit():
            return digits or character
        if character == "_":
            return underscore
        return " " if character.isspace() else (mark or character)

    return bytes(ord(of(chr(code))) if code < 0x80 else 0x20 for code in range(256))


_PIECES = _table(digits="0", capital="", mark="", underscore=" ")
_WORDS = _table(digits=" ", capital="", mark=" ", underscore=" ")
_CAPITALS = _table(digits=" ", capital="A", mark=" ", underscore=" ")
_RUNS = _table(digits="", capital="", mark=" ", underscore="_")
