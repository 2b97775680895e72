"""How a text is built, whatever its language or subject: lengths, shares, and repetition.

These are what a scorer still has where the words are new to it. Every value lies in 0 to 1 (a
logarithm of a length is divided by that of the longest text that is looked at), and each is
computed in one pass over the text or over its words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OPTION = re.compile(r"(?:^|\s)\(?[A-Ha-h][.)](?=\s)")
_MARKS = str.maketrans("", "", " \t\n\r")
_LONG_WORD = 9
_MAX_CHARS = 4_000


def shape(text: str) -> dict[str, float]:
    """Values by stable name, for at most 4,000 characters of one line of text."""
    words = _WORD.findall(text)
    numbers = _NUMBER.findall(text)
    chars = max(len(text), 1)
    return {
        "shape.chars": _log_share(len(text), _MAX_CHARS),
        "shape.words": _log_share(len(words), _MAX_CHARS // 4),
        **_vocabulary(words),
        "shape.numbers": _log_share(len(numbers), 64),
        "shape.decimals": _share(sum("." in n or "," in n for n in numbers), len(numbers)),
        "shape.digits": sum(map(len, numbers)) / chars,
        "shape.marks": _marks(text, words, numbers) / chars,
        "shape.foreign": 0.0 if text.isascii() else 1 - len(text.encode("ascii", "ignore")) / chars,
        "shape.commas": _log_share(text.count(","), 64),
        "shape.questions": _log_share(text.count("?"), 8),
        "shape.lines": _log_share(text.count(". ") + text.count("? "), 64),
        **_options(text),
    }


def _vocabulary(words: Sequence[str]) -> dict[str, float]:
    """Long words are rare words; capitals are names; few different words are a pattern."""
    lengths = [len(word) for word in words]
    return {
        "shape.word_length": min(_share(sum(lengths), len(words)) / 12, 1.0),
        "shape.long_words": _share(sum(n >= _LONG_WORD for n in lengths), len(words)),
        "shape.capitals": _share(sum(word[0].isupper() for word in words), len(words)),
        "shape.variety": _share(len({word.lower() for word in words}), len(words)),
    }


def _options(text: str) -> dict[str, float]:
    """Questions with answers to choose from: how many there are, and how much of the text."""
    starts = [match.start() for match in _OPTION.finditer(text)]
    return {
        "shape.options": min(len(starts), 8) / 8,
        "shape.options_part": 1 - starts[0] / len(text) if starts else 0.0,
    }


def _marks(text: str, words: Sequence[str], numbers: Sequence[str]) -> int:
    """Characters that are neither letters, digits nor spaces."""
    return max(0, len(text.translate(_MARKS)) - sum(map(len, words)) - sum(map(len, numbers)))


def _share(part: float, whole: int) -> float:
    return part / whole if whole else 0.0


def _log_share(count: int, most: int) -> float:
    return min(math.log1p(count) / math.log1p(most), 1.0)
