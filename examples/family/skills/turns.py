"""Multi-turn follow-ups: the last question only makes sense with the turns before it."""

from __future__ import annotations

from random import Random

from examples.family.skills.arithmetic import add_working, sub_working
from examples.family.skills.common import (
    CITIES,
    COLOURS,
    FRUITS,
    NAMES,
    THINGS,
    Message,
    Record,
    assistant,
    user,
)
from examples.family.skills.facts import FACTS

_ABOUT = {
    "name": ("My name is {x}.", "I am called {x}.", "I'm {x}."),
    "city": ("I live in {x}.", "My home is in {x}.", "I come from {x}."),
    "favourite colour": ("My favourite colour is {x}.", "The colour I like best is {x}."),
    "favourite fruit": ("My favourite fruit is {x}.", "The fruit I like best is {x}."),
    "lucky number": ("My lucky number is {x}.", "The number {x} brings me luck."),
}
_RECALL = {
    "name": ("What is my name?", "Do you remember my name?", "What am I called?"),
    "city": ("Where do I live?", "Which city do I live in?", "What is my city?"),
    "favourite colour": ("What is my favourite colour?", "Which colour do I like best?"),
    "favourite fruit": ("What is my favourite fruit?", "Which fruit do I like best?"),
    "lucky number": ("What is my lucky number?", "Which number brings me luck?"),
}
_NOTED = ("Noted.", "Thanks, noted.", "I will remember that.")


def _value(rng: Random, about: str) -> str:
    if about == "lucky number":
        return str(rng.randint(2, 99))
    pools = {"name": NAMES, "city": CITIES, "favourite colour": COLOURS, "favourite fruit": FRUITS}
    return rng.choice(pools[about])


def _recall(rng: Random, level: str) -> Record:
    """Things said about the user, maybe corrected later, and one asked back."""
    count = {"easy": 1, "medium": 3, "hard": 4}[level]
    topics = rng.sample(list(_ABOUT), count)
    messages: list[Message] = []
    values = {}
    for topic in topics:
        values[topic] = _value(rng, topic)
        messages += [
            user(rng.choice(_ABOUT[topic]).format(x=values[topic])),
            assistant(_NOTED[0]),
        ]
    asked = rng.choice(topics)
    if level == "hard" and rng.random() < 0.6:
        changed = asked if rng.random() < 0.6 else rng.choice(topics)
        values[changed] = _value(rng, changed)
        messages += [
            user(f"Wait, {rng.choice(_ABOUT[changed]).format(x=values[changed])}"),
            assistant(_NOTED[0]),
        ]
    messages.append(user(rng.choice(_RECALL[asked])))
    answer = values[asked]
    return Record("followup", level, messages, answer, "exact", answer, max_tokens=24)


_LIST_START = ("Make a list: {xs}", "Start a list with {xs}.", "Note this list: {xs}")


def _show(items: list[str]) -> str:
    return "List: " + ", ".join(items)


def _edit_once(rng: Random, items: list[str], pool: list[str]) -> tuple[str, list[str]]:
    """One edit asked of a list of at least two items, and the list after it."""
    form = rng.randrange(4)
    new = rng.choice([w for w in pool if w not in items])
    old = rng.choice(items)
    if form == 0:
        return rng.choice(("Add {n}.", "Put {n} at the end.")).format(n=new), [*items, new]
    if form == 1 and len(items) > 2:
        text = rng.choice(("Remove {o}.", "Take out {o}.", "Delete {o}.")).format(o=old)
        return text, [i for i in items if i != old]
    if form == 2:
        text = rng.choice(("Replace {o} with {n}.", "Change {o} to {n}.")).format(o=old, n=new)
        return text, [new if i == old else i for i in items]
    return rng.choice(("Put {n} first.", "Add {n} at the start.")).format(n=new), [new, *items]


def _edit_list(rng: Random, level: str) -> Record:
    """A list edited in turns; the last answer is the list after the last edit."""
    size, edits = {"easy": (3, 1), "medium": (4, 2), "hard": (6, 3)}[level]
    pool = rng.choice((FRUITS, THINGS))
    items = rng.sample(pool, size)
    messages = [
        user(rng.choice(_LIST_START).format(xs=", ".join(items))),
        assistant(_show(items)),
    ]
    for step in range(edits):
        text, items = _edit_once(rng, items, pool)
        if level == "hard" and step == edits - 1:  # two edits in one turn
            more, items = _edit_once(rng, items, pool)
            text = f"{text} {more}"
        messages += [user(text), assistant(_show(items))]
    answer = str(messages.pop()["content"])
    return Record("followup", level, messages, answer, "exact", answer, max_tokens=64)


def _running_sum(rng: Random, level: str) -> Record:
    """A number changed in turns, with the working of each change."""
    top = {"easy": 20, "medium": 90, "hard": 500}[level]
    value = rng.randint(top // 2, top)
    messages = [
        user(rng.choice(("Start with {n}.", "Take the number {n}.")).format(n=value)),
        assistant(f"Answer: {value}"),
    ]
    for _ in range({"easy": 1, "medium": 2, "hard": 3}[level]):
        change = rng.randint(2, top // 2)
        if rng.random() < 0.5 or change > value:
            text = rng.choice(("Add {n}.", "Now add {n}.", "Plus {n}?")).format(n=change)
            working, value = add_working(value, change), value + change
        else:
            text = rng.choice(("Subtract {n}.", "Now take away {n}.", "Minus {n}?"))
            text = text.format(n=change)
            working, value = sub_working(value, change), value - change
        messages += [user(text), assistant(f"{working}\nAnswer: {value}")]
    answer = str(messages.pop()["content"])
    return Record("followup", level, messages, answer, "number", str(value), max_tokens=128)


def _capital_chain(rng: Random) -> Record:
    """A fact, then the same question about another country (medium)."""
    first, second = rng.sample(FACTS["easy"][0], 2)
    country = second.asks[0].removeprefix("What is the capital of ").rstrip("?")
    messages = [user(rng.choice(first.asks)), assistant(first.answer)]
    messages.append(
        user(rng.choice(("And of {c}?", "What about {c}?", "And {c}?")).format(c=country))
    )
    return Record("followup", "medium", messages, second.answer, "exact", second.answer)


def make(rng: Random, level: str) -> Record:
    """One conversation whose last turn leans on the earlier ones."""
    draw = rng.random()
    if level == "medium" and draw < 0.15:
        return _capital_chain(rng)
    if draw < 0.45:
        return _recall(rng, level)
    if draw < 0.75:
        return _edit_list(rng, level)
    return _running_sum(rng, level)
