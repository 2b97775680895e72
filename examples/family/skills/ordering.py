"""Sorting and counting, each with a short working that goes through the list once."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from examples.family.skills.common import (
    ANIMALS,
    COLOURS,
    FRUITS,
    THINGS,
    TOOLS,
    Record,
    polite,
    user,
)

_WORDS = sorted(set(ANIMALS + COLOURS + FRUITS + THINGS + TOOLS))
_SORT_UP = (
    "Sort these numbers from smallest to largest: {xs}",
    "Sort in ascending order: {xs}",
    "Put these numbers in order: {xs}",
    "Order these from low to high: {xs}",
    "Arrange {xs} from smallest to largest.",
    "Sort {xs}",
    "Sort this list: {xs}",
)
_SORT_DOWN = (
    "Sort these numbers from largest to smallest: {xs}",
    "Sort in descending order: {xs}",
    "Order these from high to low: {xs}",
    "Arrange {xs} from largest to smallest.",
)
_SORT_WORDS = (
    "Sort these words alphabetically: {xs}",
    "Put these words in alphabetical order: {xs}",
    "Sort from A to Z: {xs}",
    "Order these words by the alphabet: {xs}",
)


def _buckets(items: list[str], name: Callable[[str], str], order: list[str]) -> str:
    """Write the items by bucket, in the order of ``order``, each bucket as first met."""
    return "\n".join(
        f"{bucket}: " + ",".join(item for item in items if name(item) == bucket)
        for bucket in dict.fromkeys(name(item) for item in order)
    )


def _sort_numbers(rng: Random, level: str) -> Record:
    """Sort numbers: grouped by the first digit, then written out in order."""
    count = rng.randint(*{"easy": (3, 4), "medium": (5, 7), "hard": (6, 9)}[level])
    low, high = (100, 999) if level == "hard" else (10, 99)
    numbers = [str(n) for n in rng.sample(range(low, high + 1), count)]
    down = rng.random() < 0.3
    text = rng.choice(_SORT_DOWN if down else _SORT_UP).format(xs=", ".join(numbers))
    order = sorted(numbers, key=int, reverse=down)
    answer = ", ".join(order)
    return Record(
        "sorting",
        level,
        [user(polite(rng, text))],
        f"{_buckets(numbers, lambda n: n[0], order)}\nAnswer: {answer}",
        "exact",
        answer,
        max_tokens=160,
        key=" ".join(numbers),
    )


def _sort_words(rng: Random, level: str) -> Record:
    """Sort words: grouped by initial letter, then written out in order."""
    count = rng.randint(*{"easy": (3, 3), "medium": (4, 5), "hard": (6, 8)}[level])
    words = rng.sample(_WORDS, count)
    if level == "easy":
        while len({w[0] for w in words}) < count:
            words = rng.sample(_WORDS, count)
    text = rng.choice(_SORT_WORDS).format(xs=", ".join(words))
    order = sorted(words)
    answer = ", ".join(order)
    return Record(
        "sorting",
        level,
        [user(polite(rng, text))],
        f"{_buckets(words, lambda w: w[0], order)}\nAnswer: {answer}",
        "exact",
        answer,
        max_tokens=128,
        key=" ".join(words),
    )


def make_sorting(rng: Random, level: str) -> Record:
    """One list to sort: mostly numbers, else words."""
    return (_sort_numbers if rng.random() < 0.65 else _sort_words)(rng, level)


_COUNT_WORD = (
    'How many times does "{w}" appear in this list? {xs}',
    'Count the word "{w}": {xs}',
    'How often is "{w}" in the list {xs}?',
    'Count how many times "{w}" occurs: {xs}',
)
_COUNT_ALL = (
    "How many items are in this list? {xs}",
    "Count the items: {xs}",
    "How long is this list? {xs}",
    "How many words are there? {xs}",
)
_COUNT_KIND = (
    "How many {k} are in this list? {xs}",
    "Count the {k}: {xs}",
    "How many of these are {k}? {xs}",
)
_COUNT_OVER = (
    "How many of these numbers are greater than {n}? {xs}",
    "Count the numbers over {n}: {xs}",
    "How many numbers above {n} are there? {xs}",
)
_KINDS = {"fruits": FRUITS, "animals": ANIMALS, "colours": COLOURS, "tools": TOOLS}


def _count_record(level: str, text: str, items: list[str], hits: list[bool]) -> Record:
    """Write the list again with a running number behind each hit, then the count."""
    parts, count = [], 0
    for item, hit in zip(items, hits, strict=True):
        count += hit
        parts.append(f"{item} {count}" if hit else item)
    working = ", ".join(parts)
    return Record(
        "counting",
        level,
        [user(text)],
        f"{working}\nAnswer: {count}",
        "number",
        str(count),
        max_tokens=128,
    )


def make_counting(rng: Random, level: str) -> Record:
    """Count a word, all items, the items of a kind or the numbers over a bound."""
    count = rng.randint(*{"easy": (3, 6), "medium": (6, 9), "hard": (9, 14)}[level])
    draw = rng.random()
    if level == "easy" and draw < 0.4:
        items = rng.sample(_WORDS, count)
        text = rng.choice(_COUNT_ALL).format(xs=", ".join(items))
        hits = [True] * count
    elif draw < 0.55:
        pool = rng.sample(_WORDS, 3 if level == "easy" else 4)
        items = [rng.choice(pool) for _ in range(count)]
        text = rng.choice(_COUNT_WORD).format(w=pool[0], xs=", ".join(items))
        hits = [item == pool[0] for item in items]
    elif draw < 0.85 or level != "hard":
        kind = rng.choice(list(_KINDS))
        items = rng.sample([w for pool in _KINDS.values() for w in pool], count)
        text = rng.choice(_COUNT_KIND).format(k=kind, xs=", ".join(items))
        hits = [item in _KINDS[kind] for item in items]
    else:
        bound = 10 * rng.randint(2, 8)
        numbers = [rng.choice([n for n in range(10, 100) if n != bound]) for _ in range(count)]
        items = [str(n) for n in numbers]
        text = rng.choice(_COUNT_OVER).format(n=bound, xs=", ".join(items))
        hits = [n > bound for n in numbers]
    return _count_record(level, polite(rng, text), items, hits)
