"""What the scorer sees of a request: its structure, a guess at its domain, hashed n-grams.

All of it is computed from the text alone, in time linear in its length and over at most
``_MAX_CHARS`` characters of it. No feature's name holds any of the prompt.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise

from overspill.routing.normalise import NormalForm
from overspill.routing.shape import shape
from overspill.types.chat import Request

_MAX_CHARS = 4_000

# First match wins: what is asked for outweighs what it is about. All are searched for in lower
# case, which takes half the time of ignoring it.
_DOMAINS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("extraction", r"\bjson\b|\bextract\b|\bfields?\b|\bkeys?\b|\bfill in\b"),
        ("translation", r"\btranslat|\b(?:in|into|to) (?:french|german|spanish|italian|chinese)\b"),
        ("summary", r"\bsummar|\btl;?dr\b|\bsum up\b|\bsum .{1,20} up\b|\bmain point|\bshorten\b"),
        ("classification", r"\bclassif|\bsentiment\b|\bspam\b|\bcategor|\blabels?\b|\btopic\b"),
        ("code", r"```|\bpython\b|\bcode\b|\bregex\b|\bsql\b|\bdef \w+\(|\bfunction\b"),
        ("sorting", r"\bsort|\border\b|\balphabet|\bascending\b|\bdescending\b|\brevers|\brank\b"),
        ("story", r"\bstor(?:y|ies)\b|\bpoem\b|\bhaiku\b|\btale\b|\bwrite (?:a|an|me|about)\b"),
        (
            "counting",
            r"\bcount\b|\bhow (?:many|often) .{0,24}(?:letter|word|vowel|times|occur|item)",
        ),
        (
            "dates",
            r"\bdays? (?:after|before|from|until|between|is|was|of)\b|\bdates?\b|\bcalendar\b"
            r"|\bweekday\b|\bo'clock\b|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b",
        ),
        (
            "units",
            r"\bconvert\b|\b\d+ ?(?:km|kg|cm|mm|m|g|l|ml|hours?|minutes?|metres?|litres?|dollars?"
            r"|weeks?|dozen|years?|days?)\b.{0,16}\b(?:in|to|into|are)\b"
            r"|\bhow many (?:metres|grams|millilitres|centimetres|millimetres|cents|minutes"
            r"|seconds|days|hours|months|pieces)\b",
        ),
        (
            "arithmetic",
            r"\d ?[-+*/x×÷^] ?\(?\d|\bplus\b|\bminus\b|\btimes\b|\bdivided\b|\bmultipl|\bsubtract"
            r"|\badd\b|\bsum\b|\bproduct\b|\bin (?:all|total)\b|\bremain|\bleft\b|\bpercent",
        ),
        (
            "facts",
            r"^(?:who|what|when|where|which)\b|\bcapital\b|\binvented\b|\bwrote\b|\bsymbol\b",
        ),
        ("chat", r"^(?:hi|hello|hey|thanks|thank you|good (?:morning|evening)|bye|how are you)\b"),
    )
)
_OPERATIONS = (
    ("add", re.compile(r"\d ?\+ ?\d|\bplus\b|\badd\b|\bsum\b|\bin (?:all|total)\b|\bmore\b")),
    ("subtract", re.compile(r"\d ?[-−] ?\d|\bminus\b|\bsubtract|\btake\b|\bleft\b|\bremain")),
    ("multiply", re.compile(r"\d ?[*x×] ?\d|\btimes\b|\bmultipl|\bproduct\b|\beach\b")),
    ("divide", re.compile(r"\d ?[/÷] ?\d|\bdivid|\bshare\b|\bper\b|\baverage\b")),
)
_NUMBER = re.compile(r"\d+")
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_TOKEN = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")
_SEPARATOR = re.compile(r"[,;]")


@dataclass(frozen=True, slots=True)
class Features:
    """``structure`` maps a stable name to its value; ``ngrams`` a bucket to its weight.

    The squares of ``ngrams``, which are all equal, sum to one, or it is empty. ``domain`` is the
    guess, or ``other``. ``words`` are the CRC-32 of the different words and marks.
    """

    structure: Mapping[str, float]
    ngrams: Mapping[int, float]
    domain: str
    words: Collection[int] = ()


def extract(form: NormalForm, request: Request, buckets: int) -> Features:
    """Features of the user's latest turn, with the shape of the conversation around it."""
    text = _clip(form.last_user)
    domain = guess_domain(text, request)
    words, pairs = _hashes(text)
    return Features(
        structure=_structure(text, domain, form, request) | shape(text),
        ngrams=_unit_length({found % buckets for found in words | pairs}),
        domain=domain,
        words=words,
    )


def guess_domain(text: str, request: Request) -> str:
    """What kind of task this is, by the words that ask for it."""
    if request.tools and request.tool_choice != "none":
        return "tools"
    if request.json_schema is not None:
        return "extraction"
    lower = text.lower()
    return next((name for name, pattern in _DOMAINS if pattern.search(lower)), "other")


def hash_ngrams(text: str, buckets: int) -> dict[int, float]:
    """Words, marks and pairs of them, hashed (CRC-32); numbers count by their length alone."""
    words, pairs = _hashes(text)
    return _unit_length({found % buckets for found in words | pairs})


def _hashes(text: str) -> tuple[set[int], set[int]]:
    """CRC-32 of the different words and marks, and of the pairs of them."""
    tokens = [_shape(token) for token in _TOKEN.findall(text.lower())]
    words = {zlib.crc32(token.encode()) for token in set(tokens)}
    return words, {zlib.crc32(f"{a} {b}".encode()) for a, b in set(pairwise(tokens))}


def _unit_length(found: set[int]) -> dict[int, float]:
    return dict.fromkeys(found, 1 / math.sqrt(len(found)) if found else 0.0)


def _shape(token: str) -> str:
    return "0" * min(len(token), 6) if token[0].isdigit() else token


def _clip(text: str) -> str:
    """Both ends of a long text: the request stands at one of them."""
    half = _MAX_CHARS // 2
    return text if len(text) <= _MAX_CHARS else f"{text[:half]}\n{text[-half:]}"


def _structure(text: str, domain: str, form: NormalForm, request: Request) -> dict[str, float]:
    lengths = sorted((len(n) for n in _NUMBER.findall(text)), reverse=True)
    longest, second = (*lengths, 0, 0)[:2]
    words = math.log2(1 + len(text.split())) / 8
    items = math.log2(1 + len(_SEPARATOR.findall(text))) / 4
    values = {
        "words": words,
        "sentences": min(len(_SENTENCE_END.findall(text)), 12) / 12,
        "list_items": items,
        "numbers": min(len(lengths), 16) / 16,
        "longest_number": min(longest, 8) / 8,
        "turns": math.log2(len(form.user_turns)) / 4,
        "history": math.log2(1 + form.history_chars) / 16,
        "system_turn": float(form.has_system),
        "tools_offered": min(len(request.tools), 8) / 8,
        "schema": float(request.json_schema is not None),
        "short_follow_up": float(len(form.user_turns) > 1 and len(text.split()) < 12),
        f"domain.{domain}": 1.0,
        f"domain.{domain}.words": words,
        f"domain.{domain}.list_items": items,
        f"domain.{domain}.longest_number": min(longest, 8) / 8,
    }
    values |= _operations(text, longest, second)
    # The bias first, and nothing that is zero: it would contribute nothing.
    return {"bias": 1.0} | {name: value for name, value in values.items() if value}


def _operations(text: str, longest: int, second: int) -> dict[str, float]:
    """Which operations are asked for, and how much work each is by the operands' digits."""
    if not longest:
        return {}
    lower = text.lower()
    found = [name for name, pattern in _OPERATIONS if pattern.search(lower)]
    work = {"multiply": longest * second, "divide": longest * second}
    values = {"operations": len(found) / 4}
    for name in found:
        values[f"operation.{name}"] = 1.0
        values[f"operation.{name}.work"] = min(work.get(name, longest), 16) / 16
    return values
