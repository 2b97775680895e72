"""A set of prompts to be played: JSONL or CSV, one prompt a row, ``.gz`` too.

A row has ``prompt`` or ``messages``; beside it may stand ``id``, ``tools``, ``max_tokens``, and
``expected`` with ``grade`` (a kind of :mod:`overspill.evals.grade`, by default ``exact``). What
names it (``skill``, ``level``, ``subject``, ``task``) goes into the log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overspill.arguments import build_request
from overspill.errors import InvalidRequest, UsageError
from overspill.evals.data import json_of, objects_of, read_records
from overspill.evals.grade import KINDS, grade
from overspill.types.chat import Privacy, Request

ABOUT = ("skill", "level", "subject", "task")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a set. ``id`` is the set's own, or the number of its row, from 1 on.

    ``sha256`` is over all that a model is asked: messages, tools and ``max_tokens``.
    """

    id: str
    sha256: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    max_tokens: int | None = None
    grade: str | None = None
    expected: str = ""
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What the last turn says."""
        content = self.messages[-1].get("content")
        return content if isinstance(content, str) else ""

    def request(self, *, privacy: Privacy, max_tokens: int) -> Request:
        """The request that asks it greedily. Raises ``InvalidRequest``."""
        return build_request(
            self.messages,
            app="evals",
            floor=privacy,
            tools=self.tools,
            max_tokens=self.max_tokens or max_tokens,
        )

    def is_right(self, answer: str) -> bool | None:
        """Whether an answer is as expected; None where nothing is."""
        return None if self.grade is None else grade(self.grade, self.expected, answer)


def load_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read a set. Raises :class:`~overspill.errors.UsageError`, naming file and row, for what is
    no prompt, has no known grade, or has an id that another row has too."""
    return prompts_of(path, read_records(path))


def prompts_of(path: Path, records: Iterable[Mapping[str, Any]]) -> tuple[Prompt, ...]:
    """The prompts of some records; ``path`` names them in errors, which are as above."""
    prompts = tuple(_prompt(path, n, record) for n, record in enumerate(records, 1))
    if not prompts:
        raise UsageError(f"{path} holds no prompts.", mend="One line is one prompt.")
    rows: dict[str, int] = {}
    for row, prompt in enumerate(prompts, 1):
        other = rows.setdefault(prompt.id, row)
        if other != row:
            raise UsageError(f"{path}: rows {other} and {row} both have the id '{prompt.id}'.")
    return prompts


def _prompt(path: Path, row: int, record: Mapping[str, Any]) -> Prompt:
    try:
        messages = _messages(record)
        tools, limit = objects_of(record.get("tools"), "tools"), _limit(record.get("max_tokens"))
        kind = _grade(record)
        asked = {"messages": messages, "tools": tools, "max_tokens": limit}
        prompt = Prompt(
            id=str(record.get("id") or row),
            sha256=hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest(),
            messages=tuple(messages),
            tools=tuple(tools),
            max_tokens=limit,
            grade=kind,
            expected=_expected(kind, record.get("expected")),
            about={name: str(record[name]) for name in ABOUT if record.get(name)},
        )
        prompt.request(privacy=Privacy.ANY, max_tokens=1)  # what is no request is told now
    except (ValueError, InvalidRequest) as error:
        raise UsageError(f"{path}: row {row}: {error}") from None
    return prompt


def _messages(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    if record.get("messages"):
        return objects_of(record["messages"], "messages")
    text = record.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("there is neither 'prompt' nor 'messages'.")
    return [{"role": "user", "content": text}]


def _limit(value: Any) -> int | None:
    if value in (None, ""):
        return None
    number = float(value)
    if number != int(number) or number < 1:
        raise ValueError(f"'max_tokens' is {value}: a whole number from 1 on.")
    return int(number)


def _grade(record: Mapping[str, Any]) -> str | None:
    if record.get("expected") in (None, ""):
        return None
    kind = str(record.get("grade") or "exact")
    if kind not in KINDS:
        raise ValueError(f"'grade' is '{kind}'; known: {', '.join(KINDS)}.")
    return kind


def _expected(kind: str | None, value: Any) -> str:
    """As text; what is to be equal as JSON may stand in the file as JSON."""
    if kind is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    if kind in ("json", "tool_call", "contains_all"):
        json_of(text)
    return text
