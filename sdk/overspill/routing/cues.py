"""What words ask for: the kind of task, and which operations. First match wins among tasks.

A cue is a whole word, the beginning of one, or a phrase. The phrases' expressions are costly, so
each is only tried where one of the words that it cannot do without occurs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass

from overspill.routing.lexis import Lexis


@dataclass(frozen=True, slots=True)
class Phrase:
    """``pattern`` in lower case, tried where one of ``words`` occurs."""

    words: frozenset[str]
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Cue:
    """``opening`` is matched at the text's beginning, ``numeric`` tried where there is a number."""

    words: frozenset[str]
    stems: tuple[str, ...]
    phrases: tuple[Phrase, ...]
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
        if self.opening is not None and self.opening.match(lower):
            return True
        for stem in self.stems:
            if stem in lower and _begins_one(stem, lexis.runs):
                return True
        for phrase in self.phrases if asked else ():
            if not phrase.words.isdisjoint(asked) and phrase.pattern.search(lower):
                return True
        return self.numeric is not None and bool(lexis.numbers and self.numeric.search(lower))


def _begins_one(stem: str, runs: Iterable[str]) -> bool:
    return any(run.startswith(stem) for run in runs)


def _cue(
    words: str = "",
    *,
    stems: str = "",
    phrases: tuple[tuple[str, str], ...] = (),
    opening: str = "",
    numeric: str = "",
    literal: str = "",
) -> Cue:
    return Cue(
        words=frozenset(words.split()),
        stems=tuple(stems.split()),
        phrases=tuple(Phrase(frozenset(w.split()), re.compile(p)) for w, p in phrases),
        opening=re.compile(opening) if opening else None,
        numeric=re.compile(numeric) if numeric else None,
        literal=literal,
    )


_LANGUAGES = "french german spanish italian chinese"
_UNITS = r"km|kg|cm|mm|m|g|l|ml|hours?|minutes?|metres?|litres?|dollars?|weeks?|dozen|years?|days?"
_PARTS = (
    "metres|grams|millilitres|centimetres|millimetres|cents|minutes|seconds|days|hours|months"
    "|pieces"
)

TASKS: tuple[tuple[str, Cue], ...] = (
    # What is asked for outweighs what it is about, so that comes first.
    (
        "extraction",
        _cue("json extract field fields key keys", phrases=(("fill", r"\bfill in\b"),)),
    ),
    (
        "translation",
        _cue(
            stems="translat",
            phrases=((_LANGUAGES, rf"\b(?:in|into|to) (?:{_LANGUAGES.replace(' ', '|')})\b"),),
        ),
    ),
    (
        "summary",
        _cue(
            "tldr shorten",
            stems="summar",
            phrases=(
                ("tl", r"\btl;dr\b"),
                ("sum", r"\bsum up\b|\bsum .{1,20} up\b"),
                ("main", r"\bmain point"),
            ),
        ),
    ),
    ("classification", _cue("sentiment spam label labels topic", stems="classif categor")),
    (
        "code",
        _cue("python code regex sql function", phrases=(("def", r"\bdef \w+\("),), literal="```"),
    ),
    ("sorting", _cue("order ascending descending rank", stems="sort alphabet revers")),
    (
        "story",
        _cue(
            "story stories poem haiku tale",
            phrases=(("write", r"\bwrite (?:a|an|me|about)\b"),),
        ),
    ),
    (
        "counting",
        _cue(
            "count",
            phrases=(
                (
                    "how",
                    r"\bhow (?:many|often) .{0,24}(?:letter|word|vowel|times|occur|item)",
                ),
            ),
        ),
    ),
    (
        "dates",
        _cue(
            "date dates calendar weekday monday tuesday wednesday thursday friday saturday sunday",
            phrases=(
                ("day days", r"\bdays? (?:after|before|from|until|between|is|was|of)\b"),
                ("clock", r"\bo'clock\b"),
            ),
        ),
    ),
    (
        "units",
        _cue(
            "convert",
            phrases=(("how", rf"\bhow many (?:{_PARTS})\b"),),
            # As \b\d+, and found faster: a search for a digit is a search for a set of characters.
            numeric=rf"\d(?<!\w\d)\d* ?(?:{_UNITS})\b.{{0,16}}\b(?:in|to|into|are)\b",
        ),
    ),
    (
        "arithmetic",
        _cue(
            "plus minus times divided add sum product left",
            stems="multipl subtract remain percent",
            phrases=(("all total", r"\bin (?:all|total)\b"),),
            numeric=r"\d ?[-+*/x×÷^] ?\(?\d",
        ),
    ),
    (
        "facts",
        _cue("capital invented wrote symbol", opening=r"(?:who|what|when|where|which)\b"),
    ),
    (
        "chat",
        _cue(
            opening=r"(?:hi|hello|hey|thanks|thank you|good (?:morning|evening)|bye"
            r"|how are you)\b"
        ),
    ),
)

OPERATIONS: tuple[tuple[str, Cue], ...] = (
    (
        "add",
        _cue(
            "plus add sum more",
            phrases=(("all total", r"\bin (?:all|total)\b"),),
            numeric=r"\d ?\+ ?\d",
        ),
    ),
    ("subtract", _cue("minus take left", stems="subtract remain", numeric=r"\d ?[-−] ?\d")),
    ("multiply", _cue("times product each", stems="multipl", numeric=r"\d ?[*x×] ?\d")),
    ("divide", _cue("share per average", stems="divid", numeric=r"\d ?[/÷] ?\d")),
)


_NAMED = frozenset(
    word
    for _, cue in (*TASKS, *OPERATIONS)
    for words in (cue.words, *(phrase.words for phrase in cue.phrases))
    for word in words
)


def task_of(lexis: Lexis) -> str:
    """The first task that a cue speaks of, or ``other``."""
    asked = lexis.runs & _NAMED
    for name, cue in TASKS:
        if cue.matches(lexis, asked):
            return name
    return "other"


def operations_in(lexis: Lexis) -> list[str]:
    """The operations that a cue speaks of."""
    asked = lexis.runs & _NAMED
    return [name for name, cue in OPERATIONS if cue.matches(lexis, asked)]
