"""What the scorer sees of a request: its structure, a guess at its domain, hashed n-grams.

All of it is computed from the text alone, in time linear in its length and over at most
``lexis.MAX_CHARS`` characters of it. No feature's name holds any of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from zlib import crc32

from overspill.routing.cues import operations_in, task_of
from overspill.routing.lexis import Lexis, lexis_of
from overspill.routing.normalise import NormalForm
from overspill.routing.shape import shape
from overspill.types.chat import Request


@dataclass(frozen=True, slots=True)
class Features:
    """``structure`` maps a stable name to its value; ``buckets`` are those of its n-grams.

    ``domain`` is the guess, or ``other``. ``words`` are the CRC-32 of the different words and
    marks.
    """

    structure: Mapping[str, float]
    buckets: Collection[int]
    domain: str
    words: Collection[int] = ()

    @property
    def weight(self) -> float:
        """Of every n-gram: the squares sum to one, where there are any."""
        return 1 / math.sqrt(len(self.buckets)) if self.buckets else 0.0

    @property
    def ngrams(self) -> Mapping[int, float]:
        """Each bucket with its weight."""
        return dict.fromkeys(self.buckets, self.weight)


def extract(form: NormalForm, request: Request, buckets: int) -> Features:
    """Features of the user's latest turn, with the shape of the conversation around it."""
    lexis = form.lexis
    domain = _domain(lexis, request)
    words, found = _hashes(lexis.pieces, buckets)
    structure = _structure(lexis, domain, form, request)
    structure.update(shape(lexis))
    return Features(structure, found, domain, words)


def guess_domain(text: str, request: Request) -> str:
    """What kind of task this is, by the words that ask for it."""
    return _domain(lexis_of(text), request)


def hash_ngrams(text: str, buckets: int) -> dict[int, float]:
    """Words, marks and pairs of them, hashed (CRC-32); numbers count by their length alone."""
    words, found = _hashes(lexis_of(text).pieces, buckets)
    return dict(Features({}, found, "other", words).ngrams)


def _domain(lexis: Lexis, request: Request) -> str:
    if request.tools and request.tool_choice != "none":
        return "tools"
    if request.json_schema is not None:
        return "extraction"
    return task_of(lexis)


def _hashes(pieces: tuple[bytes, ...], buckets: int) -> tuple[set[int], set[int]]:
    """CRC-32 of the different words and marks, and the buckets of these and of pairs of them.

    A pair has a space between. Its hash is that of its first piece, continued: no pair is ever put
    together.
    """
    if not pieces:
        return set(), set()
    crcs = list(map(crc32, pieces))
    spaced = b"\n ".join(pieces).split(b"\n")  # all but the first begin with a space
    words = set(crcs)
    crcs += map(crc32, spaced[1:], tuple(crcs))
    if buckets & (buckets - 1):
        return words, {crc % buckets for crc in crcs}
    mask = buckets - 1
    return words, {crc & mask for crc in crcs}


def _structure(lexis: Lexis, domain: str, form: NormalForm, request: Request) -> dict[str, float]:
    text = lexis.text
    lengths = _digits(lexis.numbers)
    longest, second = (*lengths, 0, 0)[:2]
    parts = text.count(" ") + 1 if text else 0
    words = math.log2(1 + parts) / 8
    items = math.log2(1 + text.count(",") + text.count(";")) / 4
    values = {
        "bias": 1.0,
        "words": words,
        "sentences": min(_sentences(text), 12) / 12,
        "list_items": items,
        "numbers": min(len(lengths), 16) / 16,
        "longest_number": min(longest, 8) / 8,
        "turns": math.log2(len(form.user_turns)) / 4,
        "history": math.log2(1 + form.history_chars) / 16,
        "system_turn": float(form.has_system),
        "tools_offered": min(len(request.tools), 8) / 8,
        "schema": float(request.json_schema is not None),
        "short_follow_up": float(len(form.user_turns) > 1 and parts < 12),
        f"domain.{domain}": 1.0,
        f"domain.{domain}.words": words,
        f"domain.{domain}.list_items": items,
        f"domain.{domain}.longest_number": min(longest, 8) / 8,
    }
    if longest:
        values |= _operations(lexis, longest, second)
    # Nothing that is zero: it would contribute nothing.
    return {name: value for name, value in values.items() if value}


def _digits(numbers: tuple[str, ...]) -> list[int]:
    """How many digits each run of them has, longest first."""
    if not numbers:
        return []
    runs = " ".join(numbers).replace(".", " ").replace(",", " ").split()
    return sorted(map(len, runs), reverse=True)


def _sentences(text: str) -> int:
    return text.count(". ") + text.count("! ") + text.count("? ") + text.endswith((".", "!", "?"))


def _operations(lexis: Lexis, longest: int, second: int) -> dict[str, float]:
    """Which operations are asked for, and how much work each is by the operands' digits."""
    found = operations_in(lexis)
    work = {"multiply": longest * second, "divide": longest * second}
    values = {"operations": len(found) / 4}
    for name in found:
        values[f"operation.{name}"] = 1.0
        values[f"operation.{name}.work"] = min(work.get(name, longest), 16) / 16
    return values
