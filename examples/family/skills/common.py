"""What every skill shares: the record of one prompt, phrasing helpers and word pools."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

LEVELS = ("easy", "medium", "hard")

# One prompt in RESERVED_OF is held back for evaluation: training never sees its key.
RESERVED_OF = 16

T = TypeVar("T")
Message = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One prompt, its model answer for training and how an answer is graded.

    ``messages`` ends with the user's (or a tool's) turn; ``answer`` is the assistant's reply
    to it. ``key`` is what decides whether the record is held back: the values asked about
    where a skill has few phrasings of many values, else (empty) the user's own words.
    """

    skill: str
    level: str
    messages: list[Message]
    answer: str
    kind: str
    expected: str
    max_tokens: int = 96
    tools: list[dict[str, Any]] = field(default_factory=list)
    key: str = ""


def normalise(text: str) -> str:
    """Lower-case ``text``, with runs of anything but letters and digits as one space."""
    return re.sub(r"[\W_]+", " ", text.lower()).strip()


def user_text(messages: Sequence[Message]) -> str:
    """Join what the user says in ``messages``; system and tool turns do not count."""
    return "\n".join(str(m["content"]) for m in messages if m["role"] == "user")


def is_reserved(record: Record) -> bool:
    """Whether ``record`` belongs to the held-back part, decided by a hash of its key."""
    key = record.key or normalise(user_text(record.messages))
    digest = hashlib.sha256(f"{record.skill}|{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % RESERVED_OF == 0


def user(text: str) -> Message:
    """One user turn."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """One assistant turn."""
    return {"role": "assistant", "content": text}


def lower_first(text: str) -> str:
    """Lower-case the first letter, so that a politeness can go in front."""
    return text[:1].lower() + text[1:]


def polite(rng: Random, text: str) -> str:
    """Put a greeting or a politeness around ``text`` in about a quarter of the cases."""
    draw = rng.random()
    if draw < 0.08:
        return f"Please {lower_first(text)}"
    if draw < 0.13:
        return f"Hi! {text}"
    if draw < 0.17:
        return f"Can you help? {text}"
    if draw < 0.21:
        return f"{text} Thanks!"
    if draw < 0.25:
        return f"{text} Please."
    return text


def join_and(items: Sequence[str]) -> str:
    """Join as in speech: ``a``, ``a and b``, ``a, b and c``."""
    if len(items) == 1:
        return items[0]
    return ", ".join(items[:-1]) + " and " + items[-1]


def article(phrase: str) -> str:
    """Put ``a`` or ``an`` in front of ``phrase``."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


NAMES = (
    "Anna Ben Carla David Emma Felix Grace Henry Ivy Jack Kate Leo Maria Noah Olivia Paul Rosa "
    "Sam Tom Uma Victor Wendy Alice Bob Clara Daniel Eva Frank Helen Ivan Julia Karl Laura Mark "
    "Nina Oscar Peter Ruth Simon Tina Yara Zoe Omar Lina Hugo Mia Luis Sara Adam Lucy"
).split()
CITIES = (
    "Paris Rome Berlin Madrid London Lisbon Vienna Prague Oslo Dublin Athens Cairo Tokyo Delhi "
    "Boston Chicago Denver Seattle Toronto Sydney Lima Milan Geneva Munich Lyon Porto Krakow "
    "Nairobi Mumbai Austin"
).split()
FRUITS = "apple banana cherry grape lemon mango orange peach pear plum melon kiwi".split()
ANIMALS = "cat dog horse rabbit fox owl bear mouse tiger duck frog sheep goat lion wolf".split()
COLOURS = "red blue green yellow black white purple pink brown grey".split()
TOOLS = "hammer saw drill rope nail brush ladder wrench".split()
THINGS = (
    "book lamp chair table phone laptop camera bag bottle clock guitar bicycle jacket mirror pen "
    "scarf watch pillow kettle radio"
).split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
