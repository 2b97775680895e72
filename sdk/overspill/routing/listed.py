"""The user's own list: names and terms that are found as whole words, in any case and any form.

"Whole word" means nothing in scripts that write no spaces, so there a term is found anywhere.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from overspill.routing.spans import Span

# Scripts without spaces between words, and Korean, whose particles are written onto a name.
_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)


def find_listed(text: str, terms: tuple[str, ...]) -> list[Span]:
    """Where the terms stand; where two begin at one place, the longer one counts."""
    if not terms:
        return []
    pattern, folded_terms = _compiled(terms)
    folded = _fold(text)
    if not any(term in folded for term in folded_terms):
        return []
    if text.isascii():
        return [match.span() for match in pattern.finditer(folded)]
    folded, places = _fold_with_places(text)
    return [(places[m.start()], places[m.end()]) for m in pattern.finditer(folded)]


def _fold(text: str) -> str:
    """In any case (as Unicode folds it) and in one form: composed, of usual width."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _fold_with_places(text: str) -> tuple[str, list[int]]:
    """The folded text, and for each of its characters, and its end, the place in ``text``."""
    folded, places, start = [], [], 0
    for end in range(1, len(text) + 1):
        if end < len(text) and unicodedata.combining(text[end]):
            continue  # an accent belongs to the letter before it
        piece = _fold(text[start:end])
        folded.append(piece)
        places += [start] * len(piece)
        start = end
    return "".join(folded), [*places, len(text)]


@lru_cache(maxsize=8)
def _compiled(terms: tuple[str, ...]) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """One expression for all terms: a policy's list is the same for request after request."""
    folded = tuple(sorted({_fold(term.strip()) for term in terms}, key=len, reverse=True))
    return re.compile("|".join(map(_whole, folded))), folded


def _whole(term: str) -> str:
    before = "" if _NO_SPACES.match(term[0]) else r"(?<!\w)"
    after = "" if _NO_SPACES.match(term[-1]) else r"(?!\w)"
    return f"{before}{re.escape(term)}{after}"
