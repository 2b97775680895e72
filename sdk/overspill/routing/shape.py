"""How a text is built, whatever its language or subject: lengths, shares, and repetition.

These are what a scorer still has where the words are new to it. Every value lies in 0 to 1 (a
logarithm of a length is divided by that of the longest text that is looked at).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from overspill.routing.lexis import MAX_CHARS, Lexis

# "A. ", "(b) ": the mark is searched for, since there are fewer of those than of letters.
_OPTION_MARK = re.compile(r"[.)](?<=[A-Ha-h].)(?=\s)")
_OPTIONS = frozenset(
    f"{opening}{letter}{mark}"
    for opening in ("", "(")
    for letter in "ABCDEFGHabcdefgh"
    for mark in ".)"
)
_LONG_WORD = 9
_LOG_1P = tuple(math.log1p(count) for count in range(MAX_CHARS + 2))


def shape(lexis: Lexis) -> dict[str, float]:
    """Values by stable name, for one line of text."""
    text, words, numbers = lexis.text, lexis.words, lexis.numbers
    chars = len(text) or 1
    lengths = list(map(len, words))
    letters, digits = sum(lengths), sum(map(len, numbers))
    marks = len(text) - text.count(" ") - letters - digits
    return {
        "shape.chars": _log_share(len(text), MAX_CHARS),
        "shape.words": _log_share(len(words), MAX_CHARS // 4),
        **_vocabulary(lexis, lengths, letters),
        "shape.numbers": _log_share(len(numbers), 64) if numbers else 0.0,
        "shape.decimals": _decimals(numbers) / len(numbers) if numbers else 0.0,
        "shape.digits": digits / chars,
        "shape.marks": max(0, marks) / chars,
        "shape.foreign": 0.0 if text.isascii() else 1 - len(text.encode("ascii", "ignore")) / chars,
        "shape.commas": _log_share(text.count(","), 64),
        "shape.questions": _log_share(text.count("?"), 8),
        "shape.lines": _log_share(text.count(". ") + text.count("? "), 64),
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
    if _OPTIONS.isdisjoint(text.split()):
        return {"shape.options": 0.0, "shape.options_part": 0.0}
    found = [_option_start(text, match.start()) for match in _OPTION_MARK.finditer(text)]
    starts = [start for start in found if start is not None]
    return {
        "shape.options": min(len(starts), 8) / 8,
        "shape.options_part": 1 - starts[0] / len(text) if starts else 0.0,
    }


def _option_start(text: str, mark: int) -> int | None:
    """Where the option with its mark there begins: after a space, with or without a bracket."""
    start = mark - 1
    if start and text[start - 1] == "(":
        start -= 1
    if start == 0:
        return 0
    return start - 1 if text[start - 1].isspace() else None


def _decimals(numbers: Sequence[str]) -> int:
    return sum(["." in number or "," in number for number in numbers])


def _log_share(count: int, most: int) -> float:
    return _LOG_1P[count] / _LOG_1P[most] if count < most else 1.0
