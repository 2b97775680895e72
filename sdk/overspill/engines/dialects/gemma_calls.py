"""Gemma 4's form: ``<|tool_call>call:name{key:<|"|>text<|"|>,n:3,list:[1,true]}<tool_call|>``.

Strings stand as they are between marks; keys are bare, sorted by the template. Numbers and truth
values are JSON's, and nothing is ``null`` or, as the template writes it, ``None``. Source: the
family's own chat template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar, Self

from overspill.engines.dialects.base import (
    END,
    SPACE,
    CallGrammar,
    CallParser,
    Dialect,
    OpenCall,
    Quote,
    Reading,
    literal,
)
from overspill.engines.dialects.xml_calls import TEXT_RULES, choices_of, is_text
from overspill.errors import UnsupportedOption
from overspill.types.chat import Tool

OPEN, CLOSE, TEXT = "<|tool_call>", "<tool_call|>", '<|"|>'
_HEAD = "call:"
_KEY = re.compile(r"[^\s:,{}\[\]<>\"]+")
_SCALARS = ("integer", "number", "boolean", "null")
_UNHELD = (
    "$ref",
    "anyOf",
    "oneOf",
    "allOf",
    "minItems",
    "maxItems",
    "pattern",
    "patternProperties",
)
_MAX_DEPTH = 32


class GemmaCalls(Dialect):
    """Gemma 4."""

    name: ClassVar[str] = "gemma"

    @property
    def marks(self) -> tuple[str, ...]:
        """What begins and ends calls and texts, control tokens."""
        return (OPEN, CLOSE, TEXT)

    @classmethod
    def of(cls, sample: str, tool: str) -> Self | None:
        """Recognise it in how a template writes a call of ``tool``."""
        return cls() if f"{OPEN}{_HEAD}{tool}{{" in sample else None

    def parser(self, tools: Sequence[Tool], *, id_prefix: str) -> CallParser:
        """A reader for one answer."""
        return _GemmaParser(tools, id_prefix=id_prefix)

    def grammar(
        self, tools: Sequence[Tool], schemas: Sequence[str], *, many: bool, quote: Quote
    ) -> CallGrammar:
        """Each call in marks of its own.

        Raises :class:`UnsupportedOption` for what cannot be held in this form.
        """
        rules = _Rules(quote)
        calls = [
            f"{literal(_HEAD + tool.name)} {rules.value(json.loads(schema), f'tools/{tool.name}')}"
            for tool, schema in zip(tools, schemas, strict=True)
        ]
        rest = f"call_rest: ({' | '.join(calls)}) {quote(CLOSE)}"
        return CallGrammar(quote(OPEN), (rest, *rules.made), between='""')


class _Rules:
    """Rules for values of schemas, in Gemma's spelling."""

    def __init__(self, quote: Quote) -> None:
        self._mark = quote(TEXT)
        lazy = "[lazy]" if self._mark.startswith('"') else ""
        self.made = [
            rf"raw_text{lazy}: /(.|\n)*/ {self._mark}",
            f'any_value: {self._mark} raw_text | %json {{"type": ["number", "boolean", "null"]}} | '
            'any_object | "[" (any_value ("," any_value)*)? "]"',
            'any_object: "{" (any_member ("," any_member)*)? "}"',
            'any_member: /[A-Za-z0-9_-]+/ ":" any_value',
        ]

    def value(self, schema: Any, where: str) -> str:
        """A value of this schema, in Lark."""
        if not isinstance(schema, Mapping):
            return "any_value"
        for word in (*_UNHELD, *(TEXT_RULES if is_text(schema) else ())):
            if word in schema:
                raise _unheld(where, word)
        if is_text(schema):
            chosen = " | ".join(map(literal, choices_of(schema)))
            return f"{self._mark} " + (f"({chosen}) {self._mark}" if chosen else "raw_text")
        kind = schema.get("type")
        if kind in _SCALARS:
            return f"%json {json.dumps(schema)}"
        if choices_of(schema):
            raise _unheld(where, "enum")
        if kind == "array":
            item = self.value(schema.get("items"), f"{where}/items")
            return f'"[" ({item} ("," {item})*)? "]"'
        if kind != "object":
            return "any_value"
        if not schema.get("properties"):
            return '"{}"' if schema.get("additionalProperties") is False else "any_object"
        return self._object(schema, where)

    def _object(self, schema: Mapping[str, Any], where: str) -> str:
        """Members in their order; a comma stands between those that are there."""
        required, rule = schema.get("required", ()), f"object_{len(self.made)}"
        # Its number is taken before its members take theirs.
        self.made.append("")
        at = len(self.made) - 1
        keys = sorted(schema["properties"])
        lines = [f'{rule}: "{{" {rule}_first_0 "}}"']
        for i, key in enumerate(keys):
            if not _KEY.fullmatch(key):
                raise _unheld(f"{where}/{key}", "its name")
            inner = self.value(schema["properties"][key], f"{where}/{key}")
            member = f"{literal(key + ':')} {inner} {rule}_next_{i + 1}"
            skip = "" if key in required else " | {}"
            lines.append(f"{rule}_first_{i}: {member}" + skip.format(f"{rule}_first_{i + 1}"))
            lines.append(f'{rule}_next_{i}: "," {member}' + skip.format(f"{rule}_next_{i + 1}"))
        lines += [f'{rule}_{state}_{len(keys)}: ""' for state in ("first", "next")]
        self.made[at] = "\n".join(lines)
        return rule


def _unheld(where: str, word: str) -> UnsupportedOption:
    return UnsupportedOption(
        f"{where}: '{word}' cannot be enforced in this model's form of tool calls.",
        param="tools",
        mend="Leave it out and check the arguments.",
    )


_Part = Generator[None, str, tuple[str, bool]]
"""Reads a part of a call: what was read, and whether it was right."""


class _GemmaParser(CallParser):
    """Reads arguments into JSON as they come."""

    def _read(self) -> Reading:
        while (yield from self._text_until((OPEN,))) != END:
            head, stop = yield from self._up_to_tag("{")
            name = head.strip().removeprefix(_HEAD)
            raw = OPEN + head + stop
            if not stop or name not in self._tools or not head.strip().startswith(_HEAD):
                self._say(raw)
                continue
            call = self._open_call(name)
            body, complete = yield from self._object(call, 0)
            raw += body
            if complete:
                closing, complete = yield from self._tag(CLOSE)
                raw += closing
            if complete:
                self._close_call(call)
            else:
                self._say(raw)

    def _object(self, call: OpenCall, depth: int) -> _Part:
        """Read members up to ``}``; the opening was read."""
        raw, seen = "", set[str]()
        self._grow(call, "{")
        while True:
            head, stop = yield from self._up_to_tag(":", "}")
            raw += head + stop
            key = head.strip().removeprefix(TEXT).removesuffix(TEXT)
            if stop == "}" and not head.strip() and not seen:
                self._grow(call, "}")
                return raw, True
            if stop != ":" or not _KEY.fullmatch(key) or key in seen:
                return raw, False
            self._grow(call, ("," if seen else "") + json.dumps(key, ensure_ascii=False) + ":")
            seen.add(key)
            more, stop = yield from self._value(call, "}", depth)
            raw += more
            if stop != ",":
                self._grow(call, "}" if stop else "")
                return raw, stop == "}"

    def _array(self, call: OpenCall, depth: int) -> _Part:
        raw, stop = "", ","
        self._grow(call, "[")
        while stop == ",":
            more, stop = yield from self._value(call, "]", depth, may_lack=not raw)
            raw += more
            self._grow(call, stop)
        return raw, stop == "]"

    def _value(
        self, call: OpenCall, end: str, depth: int, *, may_lack: bool = False
    ) -> Generator[None, str, tuple[str, str]]:
        """Read a value and what follows it: ``,`` or ``end``; "" where it is none of them."""
        raw, char = "", " "
        while char != END and char in SPACE:
            char = yield
            raw += char
        if char in ("{", "[") and depth < _MAX_DEPTH:
            inner = self._object if char == "{" else self._array
            more, whole = yield from inner(call, depth + 1)
            raw += more
        elif char == TEXT[0]:
            more, whole = yield from self._text(call)
            raw += more
        else:
            return (yield from self._scalar(call, raw, char, end, may_lack=may_lack))
        if not whole:
            return raw, ""
        more, found = yield from self._tag(",", end)
        return raw + more, more[-1] if found else ""

    def _text(self, call: OpenCall) -> _Part:
        """Read a text between its marks; the first character of the first was read."""
        found = TEXT[0]
        while found != TEXT:
            char = yield
            if char == END or not TEXT.startswith(found + char):
                self._read_again(char)
                return found[1:], False
            found += char
        gone, held = [found[1:]], ""
        self._grow(call, '"')
        while held != TEXT:
            char = yield
            if char == END:
                return "".join(gone) + held, False
            held += char
            while not TEXT.startswith(held):
                self._grow(call, json.dumps(held[0], ensure_ascii=False)[1:-1])
                gone.append(held[0])
                held = held[1:]
        self._grow(call, '"')
        return "".join(gone) + TEXT, True

    def _scalar(
        self, call: OpenCall, raw: str, char: str, end: str, *, may_lack: bool
    ) -> Generator[None, str, tuple[str, str]]:
        """Read a number, a truth value or nothing, and what follows."""
        word = ""
        while char != END and char not in (",", end, "<", "{", "[") and len(word) < 64:
            word += char
            char = yield
            raw += char
        if char not in (",", end) or char == END:
            return raw, ""
        said = word.strip()
        if not said and may_lack and char == end:
            return raw, char
        try:
            json.loads(value := "null" if said == "None" else said)
        except ValueError:
            return raw, ""
        self._grow(call, value)
        return raw, char
