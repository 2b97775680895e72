"""Mechanical grading of answers: no model, no network.

Every kind compares a model's answer with an ``expected`` string:

``exact``         the same text, apart from case, spacing and the closing full stop
``number``        the number after the last ``Answer:``, else the last number of the answer
``label``         one label; words around it are allowed, another label's name is not needed
``json``          equal as JSON; the first JSON value found in the answer counts
``tool_call``     one ``<tool_call>{...}</tool_call>``, or its bare JSON: equal name and arguments
``contains_all``  criteria for free text, see :func:`_grade_contains_all`
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

from overspill.types.chat import ToolCall

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_TOOL_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$|\")")


def gradable(text: str, tool_calls: Iterable[ToolCall]) -> str:
    """An answer's text, and the calls that it wants made, as one text that can be graded."""
    calls = [
        f'<tool_call>{{"name": "{call.name}", "arguments": {call.arguments}}}</tool_call>'
        for call in tool_calls
    ]
    return "\n".join([text, *calls]).strip()


def final_part(answer: str) -> str:
    """Return the text after the last ``Answer:``, or the whole answer where there is none."""
    return answer.rsplit("Answer:", 1)[-1].strip()


def _normalise(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(" .!").strip("\"'")


def _grade_exact(expected: str, answer: str) -> bool:
    return _normalise(final_part(answer)) == _normalise(expected)


def _to_number(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", "").rstrip("."))
    except InvalidOperation:
        return None


def _grade_number(expected: str, answer: str) -> bool:
    found = _NUMBER.findall(final_part(answer))
    if not found:
        return False
    # After "Answer:" the value leads and a unit may follow; elsewhere the result comes last.
    chosen = found[0] if "Answer:" in answer else found[-1]
    value = _to_number(chosen)
    return value is not None and value == _to_number(expected)


def _grade_label(expected: str, answer: str) -> bool:
    text = _normalise(final_part(answer))
    wanted = _normalise(expected)
    if text == wanted:
        return True
    # "The label is spam." is right; "not spam" or "spam or ham" is not.
    if re.search(r"\b(?:not|or|and|neither)\b", text) and not re.search(
        r"\b(?:not|or|and|neither)\b", wanted
    ):
        return False
    return re.search(rf"(?:\bis|:)\s+{re.escape(wanted)}$", text) is not None


def _first_json(text: str) -> tuple[bool, Any]:
    """Return (found, value) for the first JSON object or array within ``text``."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"[\[{]", text):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except ValueError:
            continue
        return True, value
    return False, None


def _same(left: Any, right: Any) -> bool:
    """Equality of JSON values that, unlike Python's, keeps ``true`` and ``1`` apart."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def _grade_json(expected: str, answer: str) -> bool:
    found, value = _first_json(answer)
    return found and _same(value, json.loads(expected))


def _grade_tool_call(expected: str, answer: str) -> bool:
    wanted = json.loads(expected)
    calls = _TOOL_CALL.findall(answer)
    if len(calls) > 1:
        return False
    found, value = _first_json(calls[0] if calls else answer)
    if not found or not isinstance(value, dict):
        return False
    arguments = value.get("arguments")
    if isinstance(arguments, str):  # the OpenAI wire form carries arguments as a JSON string
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return False
    return value.get("name") == wanted["name"] and _same(arguments, wanted["arguments"])


def _grade_contains_all(expected: str, answer: str) -> bool:
    """Grade free text by the criteria in ``expected``, a JSON object.

    ``all``: words or phrases that must occur (whole words, any case); ``none``: ones that must
    not; ``min_sentences`` and ``max_words``: bounds on the length.
    """
    rules = json.loads(expected)
    text = " ".join(answer.lower().split())

    def occurs(phrase: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", text) is not None

    if not text or not all(occurs(phrase) for phrase in rules.get("all", [])):
        return False
    if any(occurs(phrase) for phrase in rules.get("none", [])):
        return False
    if len(_SENTENCE_END.findall(answer)) < rules.get("min_sentences", 0):
        return False
    max_words: int = rules.get("max_words", 10_000)
    return len(text.split()) <= max_words


_GRADERS: dict[str, Callable[[str, str], bool]] = {
    "exact": _grade_exact,
    "number": _grade_number,
    "label": _grade_label,
    "json": _grade_json,
    "tool_call": _grade_tool_call,
    "contains_all": _grade_contains_all,
}

KINDS = tuple(_GRADERS)


def grade(kind: str, expected: str, answer: str) -> bool:
    """Return whether ``answer`` is right. Raises ``ValueError`` for an unknown ``kind``."""
    try:
        grader = _GRADERS[kind]
    except KeyError:
        raise ValueError(f"unknown grade kind {kind!r}; known: {', '.join(KINDS)}") from None
    return grader(expected, answer)
