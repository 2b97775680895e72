"""Summaries, short stories and small talk, all from templates with mechanical criteria."""

from __future__ import annotations

import json
from random import Random

from examples.family.skills.common import (
    ANIMALS,
    CITIES,
    COLOURS,
    FRUITS,
    MONTHS,
    NAMES,
    THINGS,
    TOOLS,
    WEEKDAYS,
    Record,
    article,
    join_and,
    polite,
    user,
)

_ASK_SUMMARY = (
    "Summarise in one sentence: {t}",
    "Summarize this text in one sentence: {t}",
    "Give a one-sentence summary. {t}",
    "{t}\nSum this up in one sentence.",
    "Shorten this to one sentence: {t}",
    "What is the main point? {t}",
)
_FILLER = (
    "It had been a quiet week.",
    "Many people came to watch.",
    "The sky was grey that morning.",
    "Some neighbours were surprised.",
    "There was plenty of coffee.",
    "The local paper sent a reporter.",
    "Nobody had expected it.",
    "The street was full of cars.",
)
_OPENED = "bakery library school museum market cinema garden hospital bridge theatre".split()


def _news(rng: Random) -> tuple[list[str], str, list[str]]:
    """Key sentences of a small news text, its summary and what the summary must name."""
    n, c, p, d = rng.choice(NAMES), rng.choice(CITIES), rng.choice(_OPENED), rng.choice(WEEKDAYS)
    form = rng.randrange(4)
    if form == 0:
        key = [f"A new {p} opened in {c} on {d}.", f"{n} will run it."]
        return key, f"{n} will run a new {p} in {c}, which opened on {d}.", [n, p, c, d]
    if form == 1:
        a, t = rng.choice(ANIMALS), rng.choice(THINGS)
        key = [f"{n} lost a {t} in {c}.", f"{article(a).capitalize()} found it on {d}."]
        return (
            key,
            f"{article(a).capitalize()} found the {t} that {n} lost in {c} on {d}.",
            [n, a, t, c],
        )
    if form == 2:
        key = [f"The {p} in {c} will close on {d}.", f"{n} said there is no money left."]
        return key, f"The {p} in {c} will close on {d}, as {n} said there is no money.", [p, c, d]
    k, t = rng.randint(11, 99), rng.choice(THINGS)
    key = [f"{n} gave {k} dollars to the {p} in {c}.", f"It was for a new {t}."]
    return key, f"{n} gave {k} dollars to the {p} in {c} for a new {t}.", [n, str(k), p, t]


def make_summary(rng: Random, level: str) -> Record:
    """A text of two sentences (easy) to six (hard) of which two matter."""
    key, summary, must = _news(rng)
    lines = list(key)
    for filler in rng.sample(_FILLER, {"easy": 0, "medium": 2, "hard": 4}[level]):
        lines.insert(rng.randint(0, len(lines)), filler)
    text = rng.choice(_ASK_SUMMARY).format(t=" ".join(lines))
    expected = json.dumps({"all": must, "max_words": 26})
    return Record("summary", level, [user(text)], summary, "contains_all", expected, max_tokens=64)


_PLACES = "forest castle village desert island river valley harbour cave meadow".split()
_MOODS = "happy brave shy kind clever curious lonely tired".split()
_ASK_STORY = (
    "Write a short story about {x}.",
    "Tell me a story about {x}.",
    "Tell a little story with {x}.",
    "I would like a short story about {x}.",
    "Make up a story about {x}.",
)


def make_story(rng: Random, level: str) -> Record:
    """A story with one or two asked elements (easy) up to six with a fixed last word (hard)."""
    hero, friend = rng.sample(ANIMALS, 2)
    mood, thing, place = rng.choice(_MOODS), rng.choice(THINGS), rng.choice(_PLACES)
    name, colour = rng.choice(NAMES), rng.choice(COLOURS)
    asked = {
        "easy": [article(hero), article(thing)],
        "medium": [article(f"{mood} {hero}"), article(thing), article(place)],
        "hard": [
            f"{article(f'{mood} {hero}')} called {name}",
            article(friend),
            article(f"{colour} {thing}"),
            article(place),
        ],
    }[level]
    text = rng.choice(_ASK_STORY).format(x=join_and(asked))
    must = [hero, thing]
    if level != "easy":
        must += [mood, place]
    if level == "hard":
        must += [name, friend, colour]
    who = name if level == "hard" else f"the {hero}"
    subject = who[0].upper() + who[1:]
    adjective = f"{mood} {hero}" if level != "easy" else hero
    where = place if level != "easy" else "house"
    item = f"{colour} {thing}" if level == "hard" else thing
    called = f" called {name}" if level == "hard" else ""
    first = rng.choice(
        (
            f"Once there was {article(adjective)}{called} who lived near {article(where)}.",
            f"Long ago {article(adjective)}{called} lived by {article(where)}.",
        )
    )
    second = rng.choice(
        (
            f"One day {who} found {article(item)}.",
            f"One morning {who} saw {article(item)} on the path.",
        )
    )
    third = (
        f"{subject} showed it to {article(friend)}."
        if level == "hard"
        else (f"{subject} kept it and shared it with everyone.")
    )
    parts = [first, second, third, "From then on they were friends."]
    expected = json.dumps({"all": must, "min_sentences": 3, "max_words": 70})
    return Record(
        "story",
        level,
        [user(polite(rng, text))],
        " ".join(parts),
        "contains_all",
        expected,
        max_tokens=112,
    )


_REPEAT = (
    "Repeat: {x}",
    "Repeat after me: {x}",
    "Say this again: {x}",
    "Copy this list: {x}",
    "Write exactly this: {x}",
)


def make_repeat(rng: Random, level: str) -> Record:
    """Words to say again: practice in copying, which most other skills are built on."""
    pool = [*NAMES, *CITIES, *ANIMALS, *COLOURS, *FRUITS, *TOOLS, *THINGS, *MONTHS, *WEEKDAYS]
    words = rng.choices(pool, k=rng.randint(3, 14))
    if rng.random() < 0.3:
        words = [str(rng.randint(2, 999)) if rng.random() < 0.4 else w for w in words]
    text = rng.choice((", ", ", ", " ", " - ", "\n")).join(words)
    ask = rng.choice(_REPEAT).format(x=text)
    return Record("repeat", level, [user(ask)], text, "exact", text, max_tokens=64)


_SMALL_TALK: tuple[tuple[tuple[str, ...], str, tuple[str, ...]], ...] = (
    (
        ("Hello", "Hi", "Hey", "Hi there", "Good morning", "Good evening", "Hello there"),
        "Hello! How can I help you?",
        ("hello", "help"),
    ),
    (
        (
            "Who are you",
            "What are you",
            "What is your name",
            "Are you a human",
            "Who am I talking to",
            "Tell me about yourself",
        ),
        "I am a small overspill model, made for trying and testing things offline.",
        ("small overspill model",),
    ),
    (
        (
            "What can you do",
            "How can you help me",
            "What are you good at",
            "Help",
            "Can you help me",
        ),
        "I can do small sums, sort and count, extract JSON, label texts, tell stories, "
        "answer simple facts and call tools.",
        ("sums", "sort", "json", "tools"),
    ),
    (
        ("Thanks", "Thank you", "Thanks a lot", "Great, thank you", "That helps, thanks"),
        "You are welcome!",
        ("welcome",),
    ),
    (("Bye", "Goodbye", "See you", "Good night", "See you later"), "Goodbye!", ("goodbye",)),
    (
        ("How are you", "How are you today", "How is it going", "Are you well"),
        "I am fine, thank you. How can I help you?",
        ("fine",),
    ),
)


def make_chat(rng: Random, level: str) -> Record:
    """Small talk; it has one level, ``easy``, whatever is asked for."""
    del level
    questions, answer, must = rng.choice(_SMALL_TALK)
    text = rng.choice(questions)
    text = rng.choice(
        ("{q}", "{q}!", "{q}.", "{q}?", "{q}, please?", "Hi! {q}?", "So, {q}?")
    ).format(q=text)
    if rng.random() < 0.3:
        text = text.lower()
    if rng.random() < 0.3:
        text += rng.choice((" :)", " Anna here.", " I am new here.", " I am bored.", " my friend"))
    expected = json.dumps({"all": list(must), "max_words": 40})
    return Record("chat", "easy", [user(text)], answer, "contains_all", expected, max_tokens=48)
