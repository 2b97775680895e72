"""How a text is built, whatever its language or subject: lengths, shares, and repetition.

These are what a scorer still has where the words are new to it. Every value lies in 0 to 1 (a
logarithm of a length is divided by that of the longest text that is looked at).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from overspill.routing.lexis import MAX_CHARS, Lexis

# "A. ", "(b) ", in text of which only letters to choose by, brackets and spaces are left: the mark
# is searched for, since there are fewer of those than of letters.
_OPTION_MARK = re.compile(rb"\)(?= )(?:(?<= A\))|(?<= \(A\)))")
_OPTION_KINDS = bytes(
    ord("A" if ch in "ABCDEFGHabcdefgh" else ")" if ch in ".)" else ch if ch in "( " else "x")
    for ch in map(chr, range(256))
)
_LONG_WORD = 9


def _shares(most: int) -> tuple[float, ...]:
    """The logarithms of counts, as shares of that of ``most``."""
    return tuple(math.log1p(count) / math.log1p(most) for count in range(most + 1))


_OF_CHARS, _OF_WORDS, _OF_64, _OF_8 = map(_shares, (MAX_CHARS, MAX_CHARS // 4, 64, 8))


def shape(lexis: Lexis) -> dict[str, float]:
    """Values by stable name, for one line of text."""
    text, marks, words, numbers = lexis.text, lexis.marks, lexis.words, lexis.numbers
    chars = len(text) or 1
    lengths = list(map(len, words))
    letters, digits = sum(lengths), sum(map(len, numbers))
    rest = len(text) - text.count(" ") - letters - digits
    lines = lexis.count_before_space(".") + lexis.count_before_space("?")
    return {
        "shape.chars": _OF_CHARS[min(len(text), MAX_CHARS)],
        "shape.words": _OF_WORDS[min(len(words), MAX_CHARS // 4)],
        **_vocabulary(lexis, lengths, letters),
        "shape.numbers": _OF_64[min(len(numbers), 64)],
        "shape.decimals": _decimals(numbers) / len(numbers) if numbers else 0.0,
        "shape.digits": digits / chars,
        "shape.marks": max(0, rest) / chars,
        "shape.foreign": 0.0 if text.isascii() else 1 - len(text.encode("ascii", "ignore")) / chars,
        "shape.commas": _OF_64[min(marks.count(b","), 64)],
        "shape.questions": _OF_8[min(marks.count(b"?"), 8)],
        "shape.lines": _OF_64[min(lines, 64)],
        **_options(text),
    }


def _vocabulary(lexis: Lexis, lengths: Sequence[int], letters: int) -> dict[str, float]:
    """Long words are rare words; capitals are names; few different words are a pattern."""
    count = len(lengths) or 1
    return {
        "shape.word_length": min(letters / count / 12, 1.0),
        "shape.long_words": len([1 for length in lengths if length >= _LONG_WORD]) / count,
        "shape.capitals": lexis.capitals / count,
        "shape.variety": len(set(lexis.words)) / count,
    }


def _options(text: str) -> dict[str, float]:
    """Questions with answers to choose from: how many there are, and how much of the text."""
    kinds = f" {text}".encode("ascii", "replace").translate(_OPTION_KINDS)
    if b"A) " not in kinds:
        return {"shape.options": 0.0, "shape.options_part": 0.0}
    marks = [match.start() for match in _OPTION_MARK.finditer(kinds)]
    return {
        "shape.options": min(len(marks), 8) / 8,
        "shape.options_part": 1 - _option_start(kinds, marks[0]) / len(text) if marks else 0.0,
    }


def _option_start(kinds: bytes, mark: int) -> int:
    """Where in the text the space before an option stands; ``kinds`` has one more before all."""
    return max(0, kinds.rindex(b" ", 0, mark) - 1)


def _decimals(numbers: Sequence[str]) -> int:
    return sum(["." in number or "," in number for number in numbers])
