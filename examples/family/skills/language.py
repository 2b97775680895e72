"""Extraction into JSON and classification."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from examples.family.skills.common import (
    CITIES,
    COLOURS,
    MONTHS,
    NAMES,
    THINGS,
    Record,
    polite,
    user,
)

_JOBS = "teacher doctor nurse baker pilot farmer lawyer driver artist engineer cook writer".split()
_ASK_KEYS = (
    "Extract {ks} as JSON: {t}",
    "Return JSON with the keys {ks}. Text: {t}",
    "Give me {ks} from this text as JSON.\n{t}",
    "{t}\nExtract {ks} as a JSON object.",
    "Read the text and fill in {ks} as JSON: {t}",
)
_ASK_LIST = (
    "List every person with {ks} as a JSON array: {t}",
    "Extract a JSON list of people with {ks}: {t}",
    "{t}\nReturn a JSON array with {ks} for each person.",
)
_NOISE = (
    "The weather was nice.",
    "Nobody was late.",
    "The coffee was cold.",
    "It was a long day.",
    "Everyone enjoyed the talk.",
    "The office is closed on Sunday.",
)


def _invented(rng: Random) -> str:
    """An invented family name, so that copying has to work for any spelling."""
    heads, tails = (
        "Bar Cal Den Fal Gor Hal Kel Lor Mar Nor Pel Ros Tal Ven Wil",
        "son man ton ley er",
    )
    return rng.choice(heads.split()) + rng.choice(tails.split())


def _person(rng: Random) -> tuple[list[str], dict[str, Any]]:
    """Sentences about one person and the fields that they state."""
    name = rng.choice(NAMES)
    if rng.random() < 0.3:
        name += " " + _invented(rng)
    f = {
        "name": name,
        "age": rng.randint(18, 89),
        "city": rng.choice(CITIES),
        "job": rng.choice(_JOBS),
    }
    lines = [
        rng.choice(
            (
                "{name} is {age} years old and lives in {city}.",
                "{name}, aged {age}, lives in {city}.",
                "{name} from {city} is {age}.",
                "My friend {name} is {age} and moved to {city}.",
            )
        ).format(**f),
        rng.choice(("{first} works as a {job}.", "{first} is a {job}.", "The job: {job}.")).format(
            first=name.split()[0], job=f["job"]
        ),
    ]
    return lines, f


def _order(rng: Random) -> tuple[list[str], dict[str, Any]]:
    """Sentences about one order and the fields that they state."""
    f = {
        "customer": rng.choice(NAMES),
        "item": rng.choice(THINGS),
        "colour": rng.choice(COLOURS),
        "quantity": rng.randint(2, 40),
        "price": rng.randint(5, 99),
    }
    lines = [
        rng.choice(
            (
                "{customer} ordered {quantity} of the {colour} {item} at {price} dollars each.",
                "Order from {customer}: {quantity} x {colour} {item}, {price} dollars each.",
                "{customer} would like {quantity} pieces of the {colour} {item} "
                "for {price} dollars.",
            )
        ).format(**f)
    ]
    return lines, f


def _event(rng: Random) -> tuple[list[str], dict[str, Any]]:
    """Sentences about one meeting and the fields that they state."""
    f = {
        "event": rng.choice("meeting lunch concert workshop party lecture interview".split()),
        "city": rng.choice(CITIES),
        "date": f"{rng.choice(MONTHS)} {rng.randint(1, 28)}",
        "time": f"{rng.randint(8, 20):02d}:{rng.choice((0, 15, 30, 45)):02d}",
        "host": rng.choice(NAMES),
    }
    lines = [
        rng.choice(
            (
                "The {event} in {city} is on {date} at {time}.",
                "On {date} at {time} there is a {event} in {city}.",
                "Join the {event} in {city}, {date}, {time}.",
            )
        ).format(**f),
        rng.choice(("{host} is the host.", "Your host is {host}.", "It is run by {host}.")).format(
            **f
        ),
    ]
    return lines, f


def _people_list(rng: Random) -> Record:
    """Two or three people into a JSON array (hard)."""
    people, lines = [], []
    keys = rng.sample(["name", "age", "city"], 3)[: rng.randint(2, 3)]
    for name in rng.sample(NAMES, rng.randint(2, 3)):
        f: dict[str, Any] = {
            "name": name,
            "age": rng.randint(18, 89),
            "city": rng.choice(CITIES),
        }
        lines.append(
            rng.choice(
                ("{name} is {age} and lives in {city}.", "{name} ({age}) is from {city}.")
            ).format(**f)
        )
        people.append({k: f[k] for k in keys})
    if rng.random() < 0.5:
        lines.insert(rng.randint(0, len(lines)), rng.choice(_NOISE))
    text = rng.choice(_ASK_LIST).format(ks=", ".join(keys), t=" ".join(lines))
    answer = json.dumps(people)
    return Record("extraction", "hard", [user(text)], answer, "json", answer, max_tokens=160)


def make_extraction(rng: Random, level: str) -> Record:
    """Fields out of a text: two (easy), three to four (medium), all of them among noise (hard)."""
    if level == "hard" and rng.random() < 0.5:
        return _people_list(rng)
    lines, fields = rng.choice((_person, _order, _event))(rng)
    if level == "easy":
        keys = rng.sample(list(fields), 2)
    elif level == "medium":
        keys = rng.sample(list(fields), rng.randint(3, 4))
    else:
        keys = rng.sample(list(fields), len(fields))
        for noise in rng.sample(_NOISE, 2):
            lines.insert(rng.randint(0, len(lines)), noise)
    text = rng.choice(_ASK_KEYS).format(ks=", ".join(keys), t=" ".join(lines))
    answer = json.dumps({k: fields[k] for k in keys})
    record = polite(rng, text) if text.startswith(("Extract", "Return", "Give")) else text
    return Record("extraction", level, [user(record)], answer, "json", answer, max_tokens=128)


_GOOD = (
    "great wonderful excellent lovely amazing perfect fantastic superb delightful brilliant "
    "pleasant impressive"
).split()
_BAD = (
    "terrible awful horrible poor dreadful disappointing boring bad nasty useless broken annoying"
).split()
_SUBJECTS = (
    "film food service hotel book phone concert room staff game meal trip course coffee".split()
)
_PLAIN = (
    "The {s} was {a}.",
    "I think the {s} is {a}.",
    "What a {a} {s}!",
    "We had a {a} {s}.",
    "My new {s} is {a}, as all my friends say.",
    "Honestly, the {s} was really {a}.",
    "{a} {s}, I tell everyone.",
)
_MIXED = (
    "The {s} was {o}, but in the end the {s2} was {a}.",
    "I expected a {o} {s}, but it was {a}.",
    "People say the {s} is {o}. I found it {a}.",
    "The {s} used to be {o}; now it is {a}.",
    "At first the {s} seemed {o}, later it turned out {a}.",
)
_TOPICS = {
    "sports": "match goal team coach player stadium race tennis league".split(),
    "weather": "rain snow storm wind cloud sunshine fog temperature thunder".split(),
    "food": "soup bread cheese recipe dinner salad kitchen sauce dessert".split(),
    "travel": "flight passport beach luggage tourist airport museum ticket cruise".split(),
    "money": "bank loan salary tax budget credit savings invoice mortgage".split(),
    "health": "doctor fever medicine hospital vitamin pain clinic surgery headache".split(),
    "music": "song guitar piano melody singer album drum orchestra concert".split(),
    "technology": "computer software internet server robot battery keyboard laptop app".split(),
}
_TOPIC_TEXT = (
    "The {a} and the {b} were all that people talked about.",
    "Yesterday we read about the {a}, and {n} spoke about a {b}.",
    "{n} asked about the {a} because of the {b}.",
    "A new {a} and an old {b} were in the news.",
    "I need to know more about the {a} and the {b}.",
)


def _sentiment(rng: Random, level: str) -> tuple[str, str]:
    """A prompt about the mood of a sentence, and its label."""
    positive = rng.random() < 0.5
    good, bad = rng.choice(_GOOD), rng.choice(_BAD)
    adjective, other = (good, bad) if positive else (bad, good)
    subject, second = rng.sample(_SUBJECTS, 2)
    negated = level != "easy" and rng.random() < 0.4
    form = rng.choice(_PLAIN if level != "hard" else _MIXED)
    if negated:  # "not bad at all" is positive, so the opposite word is negated
        adjective = "not " + other
        form = rng.choice(_MIXED if level == "hard" else ("The {s} was {a} at all.",))
        if level == "hard":
            other = rng.choice(_BAD if positive else _GOOD)
    text = form.format(s=subject, s2=second, a=adjective, o=other)
    text = text[0].upper() + text[1:]
    ask = rng.choice(
        (
            "Is this review positive or negative? {t}",
            "Classify the sentiment as positive or negative: {t}",
            "Sentiment (positive/negative): {t}",
            "{t}\nPositive or negative?",
            "Label this text positive or negative: {t}",
        )
    )
    return ask.format(t=text), "positive" if positive else "negative"


def _topic(rng: Random, level: str) -> tuple[str, str]:
    """A prompt about the topic of a sentence, and its label."""
    topics = rng.sample(list(_TOPICS), 3 if level == "easy" else 5)
    topic = rng.choice(topics)
    a, b = rng.sample(_TOPICS[topic], 2)
    text = rng.choice(_TOPIC_TEXT).format(a=a, b=b, n=rng.choice(NAMES))
    ask = rng.choice(
        (
            "Classify the topic ({ls}): {t}",
            "Which topic fits: {ls}? {t}",
            "{t}\nChoose one label: {ls}.",
            "Pick the best category from {ls} for this text: {t}",
        )
    )
    return ask.format(ls=", ".join(topics), t=text), topic


def _by_rule(rng: Random) -> tuple[str, str]:
    """A label by a rule that the prompt states: a comparison with a bound."""
    bound = 10 * rng.randint(2, 9)
    high, low = rng.choice(
        (("high", "low"), ("urgent", "normal"), ("expensive", "cheap"), ("large", "small"))
    )
    noun = rng.choice(("order", "ticket", "parcel", "invoice"))
    n = rng.choice([k for k in range(5, 130) if k != bound])
    text = (
        f"Label the {noun} {high} if its value is over {bound}, else {low}. "
        f"The {noun} from {rng.choice(NAMES)} has the value {n}."
    )
    return text, high if n > bound else low


def make_classification(rng: Random, level: str) -> Record:
    """One text to label by mood, topic or a rule stated in the prompt."""
    draw = rng.random()
    if level == "hard" and draw < 0.35:
        text, label = _by_rule(rng)
    elif draw < 0.65:
        text, label = _sentiment(rng, level)
    else:
        text, label = _topic(rng, level)
    return Record("classification", level, [user(text)], label, "label", label, max_tokens=12)
