"""A cautious guess at the language of a text: by script, then by its commonest words.

Short or mixed texts are ``unknown``: a wrong guess would take away a good route, and not
knowing takes away none.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from overspill.routing.lexis import Lexis, lexis_of

UNKNOWN = "unknown"
_SAMPLE_CHARS = 2_000
_SAMPLE_WORDS = 200
_MIN_HITS = 2
_NO_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())

# Unicode names begin with the script's name.
_SCRIPTS = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CJK": "zh",
    "CYRILLIC": "ru",
    "GREEK": "el",
    "ARABIC": "ar",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
    "THAI": "th",
}
_WORDS = {
    "en": "the and is are what how of to in for with you this that from many does write please",
    "de": "der die das und ist nicht wie viele ein eine von mit für auf was wieviel bitte ich",
    "fr": "le la les et est pas une des que dans pour avec sur combien quel quelle je vous",
    "es": "el los las y es no una que en para con por cuántos cuál qué del como está",
    "it": "il gli e è non una che di per con quanti quale come sono della nel questo",
    "pt": "os as e é não uma que em para com por quantos qual como está do da",
    "nl": "de het en is niet een van met voor op wat hoeveel hoe zijn dat ik",
}
# One byte for each language: a sample's votes are one sum, and at most 200 of them fit a byte.
_VOTES: dict[str, int] = {
    word: sum(1 << 8 * n for n, words in enumerate(_WORDS.values()) if word in words.split())
    for word in {w for words in _WORDS.values() for w in words.split()}
}
_LANGUAGES = tuple(_WORDS)


def guess_language(text: str) -> str:
    """ISO 639-1 code of the text's language, or ``unknown`` when in doubt."""
    return language_of(lexis_of(text[:_SAMPLE_CHARS]))


def language_of(lexis: Lexis) -> str:
    """As :func:`guess_language`, for a text whose words are found already."""
    return (not lexis.text.isascii() and _by_script(lexis.text)) or _by_words(lexis.words)


def _by_script(text: str) -> str | None:
    sample = text[:_SAMPLE_CHARS]
    ascii_part = sample.encode("ascii", "ignore")
    # Most of the letters would have to be others: an accent or two is not looked at.
    if len(sample) - len(ascii_part) <= len(ascii_part.translate(None, _NO_LETTERS)):
        return None
    found: Counter[str] = Counter()
    for character, count in Counter(sample).items():
        if character.isalpha():
            found["latin" if character.isascii() else _script_of(character)] += count
    letters = found.total()
    # Kana settle it: Japanese writes most of its nouns with Han characters.
    if found["ja"] and found["ja"] + found["zh"] > letters / 2:
        return "ja"
    language, count = found.most_common(1)[0] if found else ("latin", 0)
    return language if language != "latin" and count > letters / 2 else None


def _script_of(letter: str) -> str:
    return _SCRIPTS.get(unicodedata.name(letter, "?").split()[0].split("-")[0], "latin")


def _by_words(words: Sequence[str]) -> str:
    """The language with most hits, if it leads by more than a share of them."""
    votes = _VOTES
    total = sum([votes[word] for word in words[:_SAMPLE_WORDS] if word in votes])
    if not total:
        return UNKNOWN
    hits = total.to_bytes(len(_LANGUAGES), "little")
    *_, runner_up, most = sorted(hits)
    leads = most >= _MIN_HITS and most >= 2 * runner_up
    return _LANGUAGES[hits.index(most)] if leads else UNKNOWN
