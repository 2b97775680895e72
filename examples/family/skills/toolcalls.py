"""Tool calls: choosing a tool, filling its arguments and reporting a tool's result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from examples.family.skills.common import (
    CITIES,
    COLOURS,
    FRUITS,
    MONTHS,
    NAMES,
    THINGS,
    WEEKDAYS,
    Message,
    Record,
    polite,
    user,
)

Values = dict[str, Any]


@dataclass(frozen=True)
class _Tool:
    """One tool: its parameters with their JSON types and ways to ask for it."""

    name: str
    about: str
    parameters: dict[str, str]
    asks: tuple[str, ...]
    draw: Callable[[Random], Values]
    report: str = ""
    hard: bool = False


def _clock_time(rng: Random) -> str:
    return f"{rng.randint(6, 22):02d}:{rng.choice((0, 10, 15, 20, 30, 45)):02d}"


def _date(rng: Random) -> str:
    return f"{rng.choice(MONTHS)} {rng.randint(1, 28)}"


_TOOLS = (
    _Tool(
        "get_weather",
        "Weather of a city",
        {"city": "string"},
        (
            "What is the weather in {city}?",
            "How is the weather in {city} today?",
            "Will it rain in {city}?",
            "Is it cold in {city}?",
            "Weather for {city}",
        ),
        lambda r: {"city": r.choice(CITIES)},
        "It is {x} in {city}.",
    ),
    _Tool(
        "set_alarm",
        "Set an alarm",
        {"time": "string"},
        ("Set an alarm for {time}.", "Wake me at {time}.", "I need an alarm at {time}."),
        lambda r: {"time": _clock_time(r)},
    ),
    _Tool(
        "set_timer",
        "Start a timer",
        {"minutes": "integer"},
        ("Set a timer for {minutes} minutes.", "Start a {minutes} minute timer."),
        lambda r: {"minutes": r.randint(2, 90)},
    ),
    _Tool(
        "search_web",
        "Search the web",
        {"query": "string"},
        ("Search the web for {query}.", "Look up {query} online.", "Find pages about {query}."),
        lambda r: {"query": f"{r.choice(COLOURS)} {r.choice(THINGS)}"},
    ),
    _Tool(
        "play_music",
        "Play songs of an artist",
        {"artist": "string"},
        ("Play music by {artist}.", "Play some songs of {artist}.", "I want to hear {artist}."),
        lambda r: {"artist": f"{r.choice(NAMES)} {r.choice(CITIES)}"},
    ),
    _Tool(
        "send_message",
        "Send a message to a person",
        {"to": "string", "text": "string"},
        (
            'Send {to} the message "{text}".',
            'Tell {to}: "{text}"',
            'Write to {to}: "{text}"',
        ),
        lambda r: {
            "to": r.choice(NAMES),
            "text": r.choice(("see you", "call me", "I am late", "bring the"))
            + r.choice((" soon", " on " + r.choice(WEEKDAYS), " please", " " + r.choice(THINGS))),
        },
    ),
    _Tool(
        "add_to_cart",
        "Put an item in the cart",
        {"item": "string", "quantity": "integer"},
        (
            "Add {quantity} {item} to my cart.",
            "Put {quantity} {item} in the cart.",
            "I want to buy {quantity} {item}.",
        ),
        lambda r: {"item": r.choice(FRUITS), "quantity": r.randint(2, 30)},
    ),
    _Tool(
        "convert_money",
        "Convert money between currencies",
        {"amount": "integer", "from": "string", "to": "string"},
        (
            "Convert {amount} {from} to {to}.",
            "How much is {amount} {from} in {to}?",
            "Change {amount} {from} into {to}.",
        ),
        lambda r: dict(
            zip(
                ("amount", "from", "to"),
                (r.randint(5, 900), *r.sample("USD EUR GBP JPY CHF".split(), 2)),
                strict=True,
            )
        ),
        "That is {x} {to}.",
        hard=True,
    ),
    _Tool(
        "book_flight",
        "Book a flight",
        {"from": "string", "to": "string", "date": "string"},
        (
            "Book a flight from {from} to {to} on {date}.",
            "I need to fly from {from} to {to} on {date}.",
            "On {date} I want to fly to {to} from {from}.",
        ),
        lambda r: dict(zip(("from", "to", "date"), (*r.sample(CITIES, 2), _date(r)), strict=True)),
        hard=True,
    ),
    _Tool(
        "create_event",
        "Add an event to the calendar",
        {"title": "string", "date": "string", "time": "string"},
        (
            "Add {title} on {date} at {time} to my calendar.",
            "Create an event: {title}, {date}, {time}.",
            "At {time} on {date} I have {title}. Put it in the calendar.",
        ),
        lambda r: {
            "title": r.choice("lunch dinner meeting yoga tennis".split())
            + f" with {r.choice(NAMES)}",
            "date": _date(r),
            "time": _clock_time(r),
        },
        hard=True,
    ),
)
_VERBS = "get find read open check start stop update".split()
_NOUNS = "invoice report user ticket file room device account".split()


def _invented(rng: Random) -> _Tool:
    """A tool with an invented name, so that names must be read from the prompt."""
    verb, noun = rng.choice(_VERBS), rng.choice(_NOUNS)
    name = f"{verb}_{noun}"
    return _Tool(
        name,
        f"{verb.capitalize()} a {noun}",
        {"id": "integer"},
        (
            f"{verb.capitalize()} {noun} {{id}}.",
            f"{verb.capitalize()} the {noun} with id {{id}}.",
            f"I need you to {verb} {noun} number {{id}}.",
        ),
        lambda r: {"id": r.randint(10, 9999)},
    )


def schema(tool: _Tool) -> dict[str, Any]:
    """Return ``tool`` in the form of the OpenAI API."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.about,
            "parameters": {
                "type": "object",
                "properties": {k: {"type": v} for k, v in tool.parameters.items()},
                "required": list(tool.parameters),
            },
        },
    }


def call_text(name: str, arguments: Values) -> str:
    """Return the assistant's turn that calls ``name``."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>{body}</tool_call>"


def _pick(rng: Random, level: str) -> tuple[_Tool, list[_Tool]]:
    """Draw the tool to call and the shuffled list on offer."""
    hard = level == "hard"
    pool = [t for t in _TOOLS if level != "easy" or len(t.parameters) == 1]
    tools = rng.sample(pool, {"easy": 1, "medium": 2, "hard": 3}[level])
    if rng.random() < (0.2 if level == "easy" else 0.4):
        tools[0] = _invented(rng)
    if hard and not tools[0].hard and rng.random() < 0.7:
        tools[0] = rng.choice([t for t in _TOOLS if t.hard and t not in tools])
    wanted = tools[0]
    rng.shuffle(tools)
    return wanted, tools


def _report(rng: Random, level: str) -> Record:
    """The turn after a tool's answer: say the result in a sentence."""
    tool = rng.choice([t for t in _TOOLS if t.report])
    values = tool.draw(rng)
    if tool.name == "get_weather":
        result = f"{rng.choice('sunny rainy windy cloudy foggy'.split())}, {rng.randint(-9, 35)} C"
    else:
        result = str(rng.randint(5, 900))
    messages: list[Message] = [
        user(rng.choice(tool.asks).format(**values)),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "arguments": json.dumps(values, ensure_ascii=False),
                    },
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]
    answer = tool.report.format(x=result, **values)
    return Record(
        "tools",
        level,
        messages,
        answer,
        "contains_all",
        json.dumps({"all": [result], "max_words": 20}),
        tools=[schema(tool)],
        max_tokens=48,
        key=f"{messages[0]['content']} {result}",
    )


def make(rng: Random, level: str) -> Record:
    """One call out of one tool (easy), two (medium) or three, with more arguments (hard)."""
    if level != "easy" and rng.random() < 0.15:
        return _report(rng, level)
    wanted, tools = _pick(rng, level)
    values = wanted.draw(rng)
    text = polite(rng, rng.choice(wanted.asks).format(**values))
    return Record(
        "tools",
        level,
        [user(text)],
        call_text(wanted.name, values),
        "tool_call",
        json.dumps({"name": wanted.name, "arguments": values}, ensure_ascii=False),
        tools=[schema(t) for t in tools],
        max_tokens=96,
    )
