"""What words ask for: the kind of task, and which operations. First match wins among tasks.

A cue is a whole word, the beginning of one, or a phrase. Looking is costly, so a cue is only asked
where something occurs that it cannot do without: one of its words, how one of them begins, a digit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import NamedTuple, Self

from overspill.routing.lexis import Lexis


@dataclass(frozen=True, slots=True)
class Phrase:
    """``pattern`` in lower case, tried where one of ``words`` occurs."""

    words: frozenset[str]
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Cue:
    """``opening`` is matched at the text's beginning, which is one of ``openers``; ``numeric`` is
    tried where there is a number, on text with each digit as 0; ``literal`` is made of marks."""

    words: frozenset[str]
    stems: tuple[str, ...]
    phrases: tuple[Phrase, ...]
    openers: frozenset[str]
    opening: re.Pattern[str] | None
    numeric: re.Pattern[str] | None
    literal: str

    def matches(self, lexis: Lexis, asked: Set[str]) -> bool:
        """Whether the text holds this cue; ``asked`` are those of its runs that any cue names."""
        if asked and not self.words.isdisjoint(asked):
            return True
        lower = lexis.lower
        if self.literal and self.literal in lower:
            return True
        if asked and self.opening is not None and self.opening.match(lower):
            return True
        for stem in self.stems:
            if stem in lower and _begins_one(stem, lexis.runs):
                return True
        for phrase in self.phrases if asked else ():
            if not phrase.words.isdisjoint(asked) and phrase.pattern.search(lower):
                return True
        return self.numeric is not None and bool(
            lexis.numbers and self.numeric.search(lexis.zeroed)
        )

    @property
    def named(self) -> frozenset[str]:
        """Whole words of which it, its opening or one of its phrases needs one."""
        return self.words.union(self.openers, *(phrase.words for phrase in self.phrases))


def _begins_one(stem: str, runs: Iterable[str]) -> bool:
    return any(run.startswith(stem) for run in runs)


def _from(word: str, rest: str) -> str:
    """An expression for ``rest`` after a word that begins there; a search for it is one for the
    word's characters, which is much quicker than one for a word's beginning."""
    return rf"{word}(?<!\w{word}){rest}"


def _cue(
    words: str = "",
    *,
    stems: str = "",
    phrases: tuple[tuple[str, str], ...] = (),
    opening: tuple[str, str] = ("", ""),
    numeric: str = "",
    literal: str = "",
) -> Cue:
    return Cue(
        words=frozenset(words.split()),
        stems=tuple(stems.split()),
        phrases=tuple(Phrase(frozenset(w.split()), re.compile(p)) for w, p in phrases),
        openers=frozenset(opening[0].split()),
        opening=re.compile(opening[1]) if opening[1] else None,
        numeric=re.compile(numeric) if numeric else None,
        literal=literal,
    )


_UNITS = r"km|kg|cm|mm|m|g|l|ml|hours?|minutes?|metres?|litres?|dollars?|weeks?|dozen|years?|days?"
_PARTS = (
    "metres|grams|millilitres|centimetres|millimetres|cents|minutes|seconds|days|hours|months"
    "|pieces"
)

TASKS: tuple[tuple[str, Cue], ...] = (
    # What is asked for outweighs what it is about, so that comes first.
    (
        "extraction",
        _cue("json extract field fields key keys", phrases=(("fill", _from("fill", r" in\b")),)),
    ),
    (
        "translation",
        _cue(
            stems="translat",
            phrases=tuple(
                (name, rf"{name}\b(?:(?<=\bin {name})|(?<=\binto {name})|(?<=\bto {name}))")
                for name in ("french", "german", "spanish", "italian", "chinese")
            ),
        ),
    ),
    (
        "summary",
        _cue(
            "tldr shorten",
            stems="summar",
            phrases=(
                ("tl", _from("tl", r";dr\b")),
                ("sum", _from("sum", r"(?: .{1,20})? up\b")),
                ("main", _from("main", " point")),
            ),
        ),
    ),
    ("classification", _cue("sentiment spam label labels topic", stems="classif categor")),
    (
        "code",
        _cue(
            "python code regex sql function",
            phrases=(("def", _from("def", r" \w+\(")),),
            literal="```",
        ),
    ),
    ("sorting", _cue("order ascending descending rank", stems="sort alphabet revers")),
    (
        "story",
        _cue(
            "story stories poem haiku tale",
            phrases=(("write", _from("write", r" (?:a|an|me|about)\b")),),
        ),
    ),
    (
        "counting",
        _cue(
            "count",
            phrases=(
                (
                    "how",
                    _from("how", r" (?:many|often) .{0,24}(?:letter|word|vowel|times|occur|item)"),
                ),
            ),
        ),
    ),
    (
        "dates",
        _cue(
            "date dates calendar weekday monday tuesday wednesday thursday friday saturday sunday",
            phrases=(
                ("day days", _from("day", r"s? (?:after|before|from|until|between|is|was|of)\b")),
                ("clock", _from("o", r"'clock\b")),
            ),
        ),
    ),
    (
        "units",
        _cue(
            "convert",
            phrases=(("how", _from("how", rf" many (?:{_PARTS})\b")),),
            # As \b0+, and found faster: it begins with a character.
            numeric=rf"0(?<!\w0)0* ?(?:{_UNITS})\b.{{0,16}}\b(?:in|to|into|are)\b",
        ),
    ),
    (
        "arithmetic",
        _cue(
            "plus minus times divided add sum product left",
            stems="multipl subtract remain percent",
            phrases=(("all total", _from("in", r" (?:all|total)\b")),),
            numeric=r"0 ?[-+*/x×÷^] ?\(?0",
        ),
    ),
    (
        "facts",
        _cue(
            "capital invented wrote symbol",
            opening=("who what when where which", r"(?:who|what|when|where|which)\b"),
        ),
    ),
    (
        "chat",
        _cue(
            opening=(
                "hi hello hey thanks thank good bye how",
                r"(?:hi|hello|hey|thanks|thank you|good (?:morning|evening)|bye|how are you)\b",
            ),
        ),
    ),
)

OPERATIONS: tuple[tuple[str, Cue], ...] = (
    (
        "add",
        _cue(
            "plus add sum more",
            phrases=(("all total", _from("in", r" (?:all|total)\b")),),
            numeric=r"0 ?\+ ?0",
        ),
    ),
    ("subtract", _cue("minus take left", stems="subtract remain", numeric=r"0 ?[-−] ?0")),
    ("multiply", _cue("times product each", stems="multipl", numeric=r"0 ?[*x×] ?0")),
    ("divide", _cue("share per average", stems="divid", numeric=r"0 ?[/÷] ?0")),
)


class _Index(NamedTuple):
    """Which cues may match, as bits: by a word that occurs, by how one begins, by marks, by a
    number."""

    cues: tuple[tuple[str, Cue], ...]
    by_word: dict[str, int]
    words: frozenset[str]
    by_stem: tuple[tuple[str, int], ...]
    by_literal: tuple[tuple[bytes, int], ...]
    by_number: int

    @classmethod
    def of(cls, cues: tuple[tuple[str, Cue], ...]) -> Self:
        by_word: dict[str, int] = {}
        bits = [(1 << place, cue) for place, (_, cue) in enumerate(cues)]
        for bit, cue in bits:
            for word in cue.named:
                by_word[word] = by_word.get(word, 0) | bit
        return cls(
            cues,
            by_word,
            words=frozenset(by_word),
            by_stem=tuple((stem, bit) for bit, cue in bits for stem in cue.stems),
            by_literal=tuple((cue.literal.encode(), bit) for bit, cue in bits if cue.literal),
            by_number=sum(bit for bit, cue in bits if cue.numeric),
        )

    def matching(self, lexis: Lexis) -> Iterator[str]:
        """The names of the cues that match, in order."""
        asked = self.words & lexis.runs
        possible = self._possible(lexis, asked)
        for place, (name, cue) in enumerate(self.cues):
            if possible >> place & 1 and cue.matches(lexis, asked):
                yield name

    def _possible(self, lexis: Lexis, asked: Set[str]) -> int:
        possible = self.by_number if lexis.numbers else 0
        for word in asked:
            possible |= self.by_word[word]
        for stem, bit in self.by_stem:
            if stem in lexis.lower:
                possible |= bit
        for literal, bit in self.by_literal:
            if literal in lexis.marks:
                possible |= bit
        return possible


_TASKS = _Index.of(TASKS)
_OPERATIONS = _Index.of(OPERATIONS)


def task_of(lexis: Lexis) -> str:
    """The first task that a cue speaks of, or ``other``."""
    return next(_TASKS.matching(lexis), "other")


def operations_in(lexis: Lexis) -> list[str]:
    """The operations that a cue speaks of."""
    return list(_OPERATIONS.matching(lexis))
