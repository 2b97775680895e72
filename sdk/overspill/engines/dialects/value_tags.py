"""Families that put each argument between tags: GLM and its kin, DeepSeek's DSML, MiniMax M2.

::

    <tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>        (GLM)
    <minimax:tool_call><invoke name="name"><parameter name="key">value</parameter></invoke>
    </minimax:tool_call>                                                                 (MiniMax)

A value is text as it stands where the tool's schema (in DSML the tag itself) says string, else
JSON. White space between tags is the family's own. Source: the families' own chat templates.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
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
from overspill.engines.dialects.json_calls import GAP
from overspill.engines.dialects.xml_calls import TEXT_RULES, as_json, choices_of, is_text
from overspill.errors import UnsupportedOption
from overspill.types.chat import Tool

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_KEY, _KEY_END = "<arg_key>", "</arg_key>"
_VALUE, _VALUE_END = "<arg_value>", "</arg_value>"


def _tool_rules(
    rule: str, tool: Tool, schema: Mapping[str, Any], argument: _ArgumentRule
) -> list[str]:
    """``rule``: a tool's arguments in their schema's order; and a rule for each of them."""
    required = schema.get("required", ())
    keys = list(schema.get("properties", {}))
    body = [f"{rule}_{i}" + ("" if key in required else "?") for i, key in enumerate(keys)]
    rules = [f"{rule}: {' '.join(body) or chr(34) * 2}"]
    for i, key in enumerate(keys):
        where = f"tools/{tool.name}/{key}"
        rules.append(f"{rule}_{i}: {argument(key, schema['properties'][key], schema, where)}")
    return rules


class _ArgumentRule:
    """One argument's rule: its tags about ``text`` or ``json`` values.

    ``text_end`` and ``json_end`` are Lark for what ends them; ``raw`` names the rule of free text
    with its end.
    """

    def __init__(self, text_head: str, json_head: str, end: str, raw: str) -> None:
        self._text_head, self._json_head, self._end, self._raw = text_head, json_head, end, raw

    def __call__(self, key: str, inner: Any, schema: Mapping[str, Any], where: str) -> str:
        name = literal(key)
        if not is_text(inner):
            shared = ("$defs", "definitions", "x-guidance")
            kept = {name: schema[name] for name in shared if name in schema}
            whole = {**kept, **inner} if isinstance(inner, Mapping) else inner
            head = self._json_head.replace("KEY", name)
            return f"{head} %json {json.dumps(whole)} {self._end}"
        head = self._text_head.replace("KEY", name)
        if choices := choices_of(inner):
            return f"{head} ({' | '.join(map(literal, choices))}) {self._end}"
        for rule in TEXT_RULES:
            if rule in inner:
                raise UnsupportedOption(
                    f"{where}: '{rule}' cannot be enforced in this model's form of tool calls.",
                    param="tools",
                    mend="Leave it out and check the arguments.",
                )
        return f"{head} {self._raw}"


class _ValueParser(CallParser):
    """Reads arguments between tags into one JSON object, as they come."""

    def _arguments(self, call: OpenCall, tool: Tool) -> Generator[None, str, tuple[str, bool]]:
        """Read all arguments and the call's end; returns what was read, and whether it ended."""
        raw, seen = "", set[str]()
        while True:
            more, head = yield from self._argument_head()
            raw += more
            if head is None:
                return raw, False
            if head is _NO_MORE:
                self._grow(call, "}" if seen else "{}")
                return raw, True
            if head.key in seen:
                return raw, False
            self._grow(call, ("," if seen else "{") + json.dumps(head.key, ensure_ascii=False))
            self._grow(call, ":")
            seen.add(head.key)
            known = tool.parameters.get("properties", {}).get(head.key)
            text = is_text(known) if head.is_text is None else head.is_text
            value, closed = yield from self._value(call, text=text)
            raw += value
            if not closed:
                return raw, False

    @abstractmethod
    def _argument_head(self) -> Generator[None, str, tuple[str, _Head | None]]:
        """Read an argument's key and what begins its value, or the call's end (``_NO_MORE``);
        None where it was neither."""

    @property
    @abstractmethod
    def _value_end(self) -> str:
        """The tag behind a value."""

    def _value(self, call: OpenCall, *, text: bool) -> Generator[None, str, tuple[str, bool]]:
        """Read a value and its end tag; text goes out as it comes."""
        gone: list[str] = []
        held, end = "", self._value_end
        if text:
            self._grow(call, '"')
        while held != end:
            char = yield
            if char == END:
                return "".join(gone) + held, False
            held += char
            while not end.startswith(held):
                if text:
                    self._grow(call, json.dumps(held[0], ensure_ascii=False)[1:-1])
                gone.append(held[0])
                held = held[1:]
        self._grow(call, '"' if text else as_json("".join(gone).strip("\n")))
        return "".join(gone) + end, True


@dataclass(frozen=True, slots=True)
class _Head:
    """An argument's key, and whether its tag says that it is text; None where it does not say."""

    key: str
    is_text: bool | None = None


_NO_MORE = _Head("")


class KeyValueTags(Dialect):
    """GLM 4.5 and later, and who took its form: Ling, Laguna, Spark."""

    name: ClassVar[str] = "glm"

    @property
    def marks(self) -> tuple[str, ...]:
        """All its tags: tokens of their own in some vocabularies."""
        return (_CALL, _CALL_END, _KEY, _KEY_END, _VALUE, _VALUE_END)

    @classmethod
    def of(cls, sample: str, tool: str) -> Self | None:
        """Recognise it in how a template writes a call of ``tool``."""
        return cls() if re.search(rf"{_CALL}\s*{tool}\s*{_KEY}", sample) else None

    def parser(self, tools: Sequence[Tool], *, id_prefix: str) -> CallParser:
        """A reader for one answer."""
        return _KeyValueParser(tools, id_prefix=id_prefix)

    def grammar(
        self, tools: Sequence[Tool], schemas: Sequence[str], *, many: bool, quote: Quote
    ) -> CallGrammar:
        """Each call in a tag of its own.

        Raises :class:`UnsupportedOption` for strings with rules of their own.
        """
        end = quote(_VALUE_END)
        head = f"{quote(_KEY)} KEY {quote(_KEY_END)} GAP {quote(_VALUE)}"
        argument = _ArgumentRule(head, head, f"{end} GAP", "raw_value GAP")
        lazy = "[lazy]" if end.startswith('"') else ""
        rules = [GAP, rf"raw_value{lazy}: /(.|\n)*/ {end}"]
        for i, (tool, schema) in enumerate(zip(tools, schemas, strict=True)):
            rules.append(f"call_{i}: {literal(tool.name)} GAP arguments_{i}")
            rules += _tool_rules(f"arguments_{i}", tool, json.loads(schema), argument)
        one = " | ".join(f"call_{i}" for i in range(len(tools)))
        rest = f"call_rest: ({one}) {quote(_CALL_END)}"
        return CallGrammar(quote(_CALL), (rest, *rules), between="GAP")


class _KeyValueParser(_ValueParser):
    _value_end = _VALUE_END

    def _read(self) -> Reading:
        while (yield from self._text_until((_CALL,))) != END:
            name, stop = yield from self._up_to_tag("\n", "<")
            tool = self._tools.get(name.strip())
            raw = _CALL + name
            if stop:
                self._read_again(stop)
            if tool is None:
                self._say(raw)
                continue
            call = self._open_call(tool.name)
            more, complete = yield from self._arguments(call, tool)
            if complete:
                self._close_call(call)
            else:
                self._say(raw + more)

    def _argument_head(self) -> Generator[None, str, tuple[str, _Head | None]]:
        raw, found = yield from self._tag(_KEY, _CALL_END)
        if not found or raw.endswith(_CALL_END):
            return raw, _NO_MORE if found else None
        key, closed = yield from self._up_to_tag(_KEY_END)
        raw += key + closed
        if not closed:
            return raw, None
        more, found = yield from self._tag(_VALUE)
        return raw + more, _Head(key.strip()) if found else None


@dataclass(frozen=True)
class InvokeTags(Dialect):
    """``<PREFIXinvoke name="...">`` with ``<PREFIXparameter name="key">`` in a section.

    DeepSeek V3.2 and V4 (DSML: ``typed``, parameters say whether they are strings, and the prefix
    is a control token), MiniMax M2.
    """

    name: ClassVar[str] = "invoke"
    section: str = "minimax:tool_call"
    prefix: str = ""
    typed: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """The section's tags, and the prefix."""
        return (self.open, self.close, *((self.prefix,) if self.prefix else ()))

    @property
    def open(self) -> str:
        """What begins a section."""
        return f"<{self.section}>"

    @property
    def close(self) -> str:
        """What ends it."""
        return f"</{self.section}>"

    @classmethod
    def of(cls, sample: str, tool: str) -> Self | None:
        """Recognise it in how a template writes a call of ``tool``."""
        pattern = (
            rf'<([^\s<>]+)>\s*<([^\s<>]*)invoke name="{tool}">\s*<\2parameter name="[^"]*"( s)?'
        )
        found = re.search(pattern, sample)
        # Where a message's head names the tool, calls are not in the text alone.
        if found is None or f"to={tool}" in sample:
            return None
        return cls(found[1], found[2], found[3] is not None)

    def parser(self, tools: Sequence[Tool], *, id_prefix: str) -> CallParser:
        """A reader for one answer."""
        return _InvokeParser(self, tools, id_prefix=id_prefix)

    def grammar(
        self, tools: Sequence[Tool], schemas: Sequence[str], *, many: bool, quote: Quote
    ) -> CallGrammar:
        """All calls in one section.

        Raises :class:`UnsupportedOption` for strings with rules of their own.
        """
        argument = self._argument_rule(quote)
        rules = [GAP, self._raw_rule(quote)]
        for i, (tool, schema) in enumerate(zip(tools, schemas, strict=True)):
            opened = self._lark(f'<{self.prefix}invoke name="{tool.name}">', quote)
            ended = self._lark(f"</{self.prefix}invoke>", quote)
            rules.append(f"call_{i}: {opened} GAP arguments_{i} {ended}")
            rules += _tool_rules(f"arguments_{i}", tool, json.loads(schema), argument)
        one = f"({' | '.join(f'call_{i}' for i in range(len(tools)))})"
        more = f" (GAP {one})*" if many else ""
        rest = f"call_rest: GAP {one}{more} GAP {self._lark(self.close, quote)}"
        return CallGrammar(
            self._lark(self.open, quote), (rest, *rules), repeats=False, begun=self._begun(quote)
        )

    def _has_token(self, quote: Quote) -> bool:
        return bool(self.prefix) and not quote(self.prefix).startswith('"')

    def _begun(self, quote: Quote) -> str:
        """Text up to a section's opening, where its prefix is a token: no text holds that."""
        if not self._has_token(quote):
            return ""
        before, _, after = self.open.partition(self.prefix)
        return rf"/(.|\n)*{before}/ {quote(self.prefix)} {literal(after)}"

    def _argument_rule(self, quote: Quote) -> _ArgumentRule:
        opened = self._lark(f'<{self.prefix}parameter name="', quote)
        heads = [
            f"{opened} KEY {literal(end)}"
            for end in (('" string="true">', '" string="false">') if self.typed else ('">', '">'))
        ]
        end = self._lark(f"</{self.prefix}parameter>", quote)
        return _ArgumentRule(heads[0], heads[1], f"{end} GAP", "raw_value GAP")

    def _raw_rule(self, quote: Quote) -> str:
        """Text up to the end of a parameter."""
        end = f"</{self.prefix}parameter>"
        if not self._has_token(quote):
            return rf"raw_value[lazy]: /(.|\n)*/ {literal(end)}"
        # No text holds the prefix's token: what stands before it is the text and "</".
        return rf"raw_value: /(.|\n)*<\// {quote(self.prefix)} {literal('parameter>')}"

    def _lark(self, text: str, quote: Quote) -> str:
        """A tag in Lark, its prefix by its token where it is one."""
        whole = quote(text)
        if not self.prefix or not whole.startswith('"'):
            return whole
        before, _, after = text.partition(self.prefix)
        return " ".join((literal(before), quote(self.prefix), literal(after)))


class _InvokeParser(_ValueParser):
    def __init__(self, dialect: InvokeTags, tools: Sequence[Tool], *, id_prefix: str) -> None:
        self._dialect = dialect
        prefix = dialect.prefix
        self._invoke, self._invoke_end = f'<{prefix}invoke name="', f"</{prefix}invoke>"
        self._parameter = f'<{prefix}parameter name="'
        super().__init__(tools, id_prefix=id_prefix)

    @property
    def _value_end(self) -> str:
        return f"</{self._dialect.prefix}parameter>"

    def _read(self) -> Reading:
        dialect = self._dialect
        while (raw := (yield from self._text_until((dialect.open,)))) != END:
            inside = True
            while inside:
                more, found = yield from self._tag(self._invoke, dialect.close)
                raw += more
                inside = found and more.endswith(self._invoke)
                if inside:
                    more, inside = yield from self._invoked()
                    raw = "" if inside else raw + more
                elif found and self.calls_seen:
                    raw = ""
            self._say("" if self.calls_seen and not raw.strip() else raw)

    def _invoked(self) -> Generator[None, str, tuple[str, bool]]:
        """Read a call behind its opening; what was read, and whether it is one."""
        name, closed = yield from self._up_to_tag('">')
        tool = self._tools.get(name)
        raw = name + closed
        if not closed or tool is None:
            return raw, False
        call = self._open_call(tool.name)
        more, complete = yield from self._arguments(call, tool)
        if complete:
            self._close_call(call)
        return raw + more, complete

    def _argument_head(self) -> Generator[None, str, tuple[str, _Head | None]]:
        raw, found = yield from self._tag(self._parameter, self._invoke_end)
        if not found or raw.endswith(self._invoke_end):
            return raw, _NO_MORE if found else None
        key, closed = yield from self._up_to_tag('"')
        raw += key + closed
        attributes, closed = yield from self._up_to_tag(">")
        raw += attributes + closed
        if not closed:
            return raw, None
        said = re.search(r'string="(true|false)"', attributes)
        return raw, _Head(key, None if said is None else said[1] == "true")
