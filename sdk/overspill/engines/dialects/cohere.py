"""Cohere's form: a list of calls in an action, named by ``tool_name``.

``<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "name", "parameters": {...}}]<|END_ACTION|>``.
Source: the chat templates of Command R7B and Command A.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar, Self

from overspill.engines.dialects.base import (
    END,
    CallGrammar,
    CallParser,
    Dialect,
    Quote,
    Reading,
    literal,
)
from overspill.engines.dialects.json_calls import JsonParser
from overspill.types.chat import Tool

OPEN, CLOSE = "<|START_ACTION|>", "<|END_ACTION|>"


class Cohere(Dialect):
    """Command R7B, Command A and later."""

    name: ClassVar[str] = "cohere"

    @property
    def marks(self) -> tuple[str, ...]:
        """What begins and ends an action, control tokens."""
        return (OPEN, CLOSE)

    @classmethod
    def of(cls, sample: str, tool: str) -> Self | None:
        """Recognise it in how a template writes a call of ``tool``."""
        return cls() if OPEN in sample and f'"tool_name": "{tool}"' in sample else None

    def parser(self, tools: Sequence[Tool], *, id_prefix: str) -> CallParser:
        """A reader for one answer."""
        return _CohereParser(tools, id_prefix=id_prefix)

    def grammar(
        self, tools: Sequence[Tool], schemas: Sequence[str], *, many: bool, quote: Quote
    ) -> CallGrammar:
        """One list, in which calls are numbered."""
        rules = [r"GAP: /[ \n]{0,8}/"]
        for i, (tool, schema) in enumerate(zip(tools, schemas, strict=True)):
            name = literal(f'"tool_name": {json.dumps(tool.name)}')
            rules.append(
                f'action_{i}: "{{" GAP /"tool_call_id": "[0-9]{{1,3}}"/ GAP "," GAP {name} GAP '
                f'"," GAP "\\"parameters\\":" GAP %json {schema} GAP "}}"'
            )
        one = f"({' | '.join(f'action_{i}' for i in range(len(tools)))})"
        more = f' (GAP "," GAP {one})*' if many else ""
        rest = f'call_rest: GAP "[" GAP {one}{more} GAP "]" GAP {quote(CLOSE)}'
        return CallGrammar(quote(OPEN), (rest, *rules), repeats=False)


class _CohereParser(JsonParser):
    name_key: ClassVar[str] = "tool_name"

    def _read(self) -> Reading:
        while (yield from self._text_until((OPEN,))) != END:
            white, char = yield from self._skip_space()
            raw = OPEN + white
            if char != "[":
                self._read_again(char)
                self._say(raw)
                continue
            raw, ended = yield from self._list(raw + char, "parameters")
            if ended:
                more, closed = yield from self._tag(CLOSE)
                raw = "" if closed else raw + more
            self._say(raw)
