"""What the scorer sees of a request: its structure, a guess at its domain, hashed n-grams.

All of it is computed from the text alone, in time linear in its length and over at most
``lexis.MAX_CHARS`` characters of it. No feature's name holds any of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import repeat
from typing import NamedTuple
from zlib import crc32

from overspill.routing.cues import operations_in, task_of
from overspill.routing.lexis import Lexis, lexis_of
from overspill.routing.normalise import NormalForm
from overspill.routing.shape import shape
from overspill.types.chat import Request

_SHORT_WORDS = 12
"""A turn of fewer words goes on with what was said before."""


class Features(NamedTuple):
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


def extract(form: NormalForm, request: Request, buckets: int, *, shaped: bool = True) -> Features:
    """Features of the user's latest turn, with the shape of the conversation around it. Without
    ``shaped`` those of the text's own shape are left out, for a scorer that has no use for them."""
    lexis = form.lexis
    domain = _domain(lexis, request)
    words, found = _hashes(lexis.pieces, buckets)
    structure = _structure(lexis, domain, form, request)
    if shaped:
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


def _hashes(pieces: Sequence[bytes], buckets: int) -> tuple[set[int], set[int]]:
    """CRC-32 of the different words and marks, and the buckets of these and of pairs of them.

    A pair has a space between. Its hash is that of its first piece, continued: no pair is ever put
    together.
    """
    crcs = list(map(crc32, pieces))
    words = set(crcs)
    pairs = map(crc32, pieces[1:], map(crc32, repeat(b" "), crcs))
    found = {crc % buckets for crc in pairs}
    found.update([crc % buckets for crc in words])
    return words, found


def _structure(lexis: Lexis, domain: str, form: NormalForm, request: Request) -> dict[str, float]:
    """What is not zero; the rest would contribute nothing."""
    values = _size(lexis, domain)
    turns = len(form.user_turns)
    if turns > 1:
        values["turns"] = math.log2(turns) / 4
        if lexis.text.count(" ") < _SHORT_WORDS - 1:
            values["short_follow_up"] = 1.0
    if form.history_chars:
        values["history"] = math.log2(1 + form.history_chars) / 16
    if form.has_system:
        values["system_turn"] = 1.0
    if request.tools:
        values["tools_offered"] = min(len(request.tools), 8) / 8
    if request.json_schema is not None:
        values["schema"] = 1.0
    return values


def _size(lexis: Lexis, domain: str) -> dict[str, float]:
    """How much there is of what, also by domain."""
    marks = lexis.marks
    own, own_words, own_items, own_number = _of_domain(domain)
    values = {"bias": 1.0, own: 1.0}
    if lexis.text:
        values["words"] = values[own_words] = math.log2(2 + lexis.text.count(" ")) / 8
    if sentences := _sentences(lexis):
        values["sentences"] = min(sentences, 12) / 12
    if items := marks.count(b",") + marks.count(b";"):
        values["list_items"] = values[own_items] = math.log2(1 + items) / 4
    if lexis.numbers:
        lengths = _digits(lexis.numbers)
        longest, second = (*lengths, 0)[:2]
        values["numbers"] = min(len(lengths), 16) / 16
        values["longest_number"] = values[own_number] = min(longest, 8) / 8
        values |= _operations(lexis, longest, second)
    return values


@cache
def _of_domain(domain: str) -> tuple[str, str, str, str]:
    own = f"domain.{domain}"
    return own, f"{own}.words", f"{own}.list_items", f"{own}.longest_number"


def _digits(numbers: Sequence[str]) -> list[int]:
    """How many digits each run of them has, longest first."""
    runs = " ".join(numbers).replace(".", " ").replace(",", " ").split()
    return sorted(map(len, runs), reverse=True)


def _sentences(lexis: Lexis) -> int:
    text, marks = lexis.text, lexis.marks
    count = text.count(". ") if b"." in marks else 0
    if b"?" in marks:
        count += text.count("? ")
    if b"!" in marks:
        count += text.count("! ")
    return count + text.endswith((".", "!", "?"))


def _operations(lexis: Lexis, longest: int, second: int) -> dict[str, float]:
    """Which operations are asked for, and how much work each is by the operands' digits."""
    found = operations_in(lexis)
    work = {"multiply": longest * second, "divide": longest * second}
    if not found:
        return {}
    values = {"operations": len(found) / 4}
    for name in found:
        values[f"operation.{name}"] = 1.0
        if amount := work.get(name, longest):
            values[f"operation.{name}.work"] = min(amount, 16) / 16
    return values
