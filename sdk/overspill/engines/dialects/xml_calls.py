"""Qwen3-Coder's form, also Qwen 3.5's, Seed-OSS's and Nemotron 3's: parameters as tags.

::

    <tool_call>
    <function=name>
    <parameter=key>
    value
    </parameter>
    </function>
    </tool_call>

A value is text as it stands where the tool's schema says string, else JSON. Source: the families'
own chat templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from overspill.engines.dialects.base import (
    END,
    CallGrammar,
    CallParser,
    Dialect,
    OpenCall,
    Quote,
    Reading,
    literal,
)
from overspill.errors import UnsupportedOption
from overspill.types.chat import Tool

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_MAX_NAME = 256
TEXT_RULES = ("minLength", "maxLength", "pattern", "format")


@dataclass(frozen=True)
class XmlCalls(Dialect):
    """Calls whose parameters are tags, within ``open`` and ``close``."""

    name: ClassVar[str] = "qwen_xml"
    open: str = "<tool_call>"
    close: str = "</tool_call>"

    @property
    def marks(self) -> tuple[str, ...]:
        """Its outer tags."""
        return (self.open, self.close)

    @classmethod
    def of(cls, sample: str, tool: str) -> Self | None:
        """Recognise it in how a template writes a call of ``tool``."""
        found = re.search(rf"<([\w:]+)>\s*<function={tool}>\s*<parameter=", sample)
        if found is None or f"</{found[1]}>" not in sample:
            return None
        return cls(f"<{found[1]}>", f"</{found[1]}>")

    def parser(self, tools: Sequence[Tool], *, id_prefix: str) -> CallParser:
        """A reader for one answer."""
        return _XmlParser(self, tools, id_prefix=id_prefix)

    def grammar(
        self, tools: Sequence[Tool], schemas: Sequence[str], *, many: bool, quote: Quote
    ) -> CallGrammar:
        """Parameters in their schema's order, one tag each.

        Raises :class:`UnsupportedOption` for strings with rules of their own: what stands between
        tags as it is can be chosen from a list, and not be held to a pattern or a length.
        """
        rules = [
            f'call_rest: "\\n{_FUNCTION}" ({" | ".join(f"call_{i}" for i in range(len(tools)))}) '
            f'"{_FUNCTION_END}\\n" {quote(self.close)}',
            r"GAP: /[ \n]{0,2}/",
            rf"raw_value[lazy]: /(.|\n)*/ {literal(chr(10) + _PARAMETER_END)}",
        ]
        for i, (tool, schema) in enumerate(zip(tools, schemas, strict=True)):
            rules += _call_rules(f"call_{i}", tool, json.loads(schema))
        return CallGrammar(quote(self.open), tuple(rules), between="GAP")


def _call_rules(rule: str, tool: Tool, schema: Mapping[str, Any]) -> list[str]:
    """The rule of one tool's call, and a rule for each parameter."""
    required = schema.get("required", ())
    body, rules = [literal(f"{tool.name}>\n")], []
    for i, (key, inner) in enumerate(schema.get("properties", {}).items()):
        body.append(f"{rule}_{i}" + ("" if key in required else "?"))
        value = _value_rule(inner, schema, f"tools/{tool.name}/{key}")
        rules.append(f'{rule}_{i}: {literal(f"{_PARAMETER}{key}>{chr(10)}")} {value} "\\n"')
    return [f"{rule}: {' '.join(body)}", *rules]


def _value_rule(inner: Any, schema: Mapping[str, Any], where: str) -> str:
    end = literal(f"\n{_PARAMETER_END}")
    if not is_text(inner):
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        guidance = {"x-guidance": schema["x-guidance"]} if "x-guidance" in schema else {}
        whole = {**definitions, **guidance, **inner} if isinstance(inner, Mapping) else inner
        return f"%json {json.dumps(whole)} {end}"
    if choices := choices_of(inner):
        return f"({' | '.join(literal(choice) for choice in choices)}) {end}"
    for rule in TEXT_RULES:
        if rule in inner:
            raise UnsupportedOption(
                f"{where}: '{rule}' cannot be enforced in this model's form of tool calls.",
                param="tools",
                mend="Leave it out and check the arguments.",
            )
    return "raw_value"


def is_text(schema: Any) -> bool:
    """Whether a parameter's value is text and nothing else."""
    if not isinstance(schema, Mapping):
        return False
    if schema.get("type") == "string":
        return True
    choices = choices_of(schema)
    return "type" not in schema and bool(choices) and all(isinstance(c, str) for c in choices)


def choices_of(schema: Mapping[str, Any]) -> list[Any]:
    """The values that a schema lists; none where it lists none."""
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


class _XmlParser(CallParser):
    def __init__(self, dialect: XmlCalls, tools: Sequence[Tool], *, id_prefix: str) -> None:
        self._dialect = dialect
        super().__init__(tools, id_prefix=id_prefix)

    def _read(self) -> Reading:
        dialect = self._dialect
        # These models forget the outer tag at times.
        while (mark := (yield from self._text_until((dialect.open, _FUNCTION)))) != END:
            raw, found = mark, mark == _FUNCTION
            if not found:
                more, found = yield from self._tag(_FUNCTION)
                raw += more
            if found:
                yield from self._function(raw, wrapped=mark == dialect.open)
            else:
                self._say(raw)

    def _function(self, raw: str, *, wrapped: bool) -> Reading:
        name, closed = yield from self._name()
        raw += name
        tool = self._tools.get(name.removesuffix(">"))
        if not closed or tool is None:
            self._say(raw)
            return
        call = self._open_call(tool.name)
        body, complete = yield from self._parameters(call, tool)
        raw += body
        if complete and wrapped:
            more, complete = yield from self._tag(self._dialect.close)
            raw += more
        if complete:
            self._close_call(call)
        else:
            self._say(raw)

    def _parameters(self, call: OpenCall, tool: Tool) -> Generator[None, str, tuple[str, bool]]:
        """Read up to ``</function>``; returns what was read, and whether that was there."""
        raw, seen = "", set[str]()
        while True:
            tag, found = yield from self._tag(_PARAMETER, _FUNCTION_END)
            raw += tag
            if not found or tag.endswith(_FUNCTION_END):
                if found:
                    self._grow(call, "}" if seen else "{}")
                return raw, found
            key, closed = yield from self._name()
            raw += key
            key = key.removesuffix(">")
            if not closed or key in seen:
                return raw, False
            self._grow(call, ("," if seen else "{") + json.dumps(key, ensure_ascii=False) + ":")
            seen.add(key)
            properties = tool.parameters.get("properties", {})
            text, closed = yield from self._value(call, is_text(properties.get(key)))
            raw += text
            if not closed:
                return raw, False

    def _value(self, call: OpenCall, text: bool) -> Generator[None, str, tuple[str, bool]]:
        """Read a value and its end tag, without the line breaks about it."""
        gone: list[str] = []
        held = ""
        if text:
            self._grow(call, '"')
        while not held.endswith(_PARAMETER_END):
            char = yield
            if char == END:
                return "".join(gone) + held, False
            held += char
            # The last line break and the end tag are no part of the value: hold them back.
            if len(held) > len(_PARAMETER_END) + 1:
                if text and (gone or held[0] != "\n"):
                    self._grow_text(call, held[0])
                gone.append(held[0])
                held = held[1:]
        rest = held.removesuffix(_PARAMETER_END)
        last = rest.removesuffix("\n") if gone else rest.strip("\n")
        if text:
            self._grow_text(call, last)
            self._grow(call, '"')
        else:
            self._grow(call, as_json(("".join(gone) + last).removeprefix("\n")))
        return "".join(gone) + held, True

    def _grow_text(self, call: OpenCall, text: str) -> None:
        if text:
            self._grow(call, json.dumps(text, ensure_ascii=False)[1:-1])

    def _name(self) -> Generator[None, str, tuple[str, bool]]:
        """Read up to ``>``, with it."""
        name = ""
        while len(name) < _MAX_NAME:
            char = yield
            if char in (END, "<", "\n"):
                self._read_again(char)
                return name, False
            name += char
            if char == ">":
                return name, True
        return name, False


def as_json(value: str) -> str:
    """A value as it stands where it is JSON, else as text."""
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return json.dumps(value, ensure_ascii=False)
    return value.strip()
