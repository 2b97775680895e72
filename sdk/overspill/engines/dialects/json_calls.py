"""Families that write a call as a JSON object: Hermes and Qwen, Llama 3, Mistral, functionary."""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from overspill.engines.dialects.base import (
    END,
    MAX_HEAD,
    SPACE,
    CallGrammar,
    CallParser,
    Dialect,
    OpenCall,
    Quote,
    Reading,
    literal,
)
from overspill.engines.dialects.json_reader import ObjectReader
from overspill.types.chat import Tool

GAP = r"GAP: /[ \n]{0,2}/"
"""White space where a family's own templates put a line break or a space, or nothing."""


class JsonParser(CallParser):
    """What the parsers of this file share: a call, or arguments, as one JSON object."""

    name_key: ClassVar[str] = "name"

    def _object(
        self, first: str, arguments_key: str
    ) -> Generator[None, str, tuple[str, OpenCall | None]]:
        """Read ``{"name": ..., "arguments": {...}}``; returns its text, and the call if it is one.

        ``first`` is its first character. The call is complete, but not closed yet.
        """
        reader, call = ObjectReader(), None
        going_on = self._push(reader, first)
        while going_on and not reader.done:
            char = yield
            going_on = self._push(reader, char)
            if reader.key != arguments_key or not going_on:
                continue
            if call is None and reader.grown == "{" and reader.at_value_start:
                call = self._offered(reader)
            if call is not None:
                self._grow(call, reader.grown)
        return reader.raw, self._whole(reader, arguments_key, call) if reader.done else None

    def _push(self, reader: ObjectReader, char: str) -> bool:
        if char != END and reader.push(char):
            return True
        self._read_again(char)
        return False

    def _offered(self, reader: ObjectReader) -> OpenCall | None:
        name = _text(reader.members.get(self.name_key))
        return self._open_call(name) if name in self._tools else None

    def _whole(
        self, reader: ObjectReader, arguments_key: str, call: OpenCall | None
    ) -> OpenCall | None:
        written = reader.members.get(arguments_key, "{}")
        if call is not None:
            # A name or arguments that came twice make it another call than the one announced.
            same = call.arguments == written and _text(reader.members[self.name_key]) == call.name
            return call if same else None
        arguments = written if written.startswith("{") else _text(written)
        call = None if arguments is None else self._offered(reader)
        if call is not None and arguments is not None:
            self._grow(call, arguments)
        return call

    def _arguments(
        self, name: str, first: str
    ) -> Generator[None, str, tuple[str, OpenCall | None]]:
        """Read the arguments of a tool whose name is known; as :meth:`_object`."""
        reader, call = ObjectReader(), self._open_call(name)
        going_on = self._push(reader, first)
        if going_on:
            self._grow(call, first)
        while going_on and not reader.done:
            char = yield
            going_on = self._push(reader, char)
            if going_on:
                self._grow(call, char)
        return reader.raw, call if reader.done else None

    def _list(self, raw: str, arguments_key: str) -> Generator[None, str, tuple[str, bool]]:
        """Read calls up to ``]``; returns text that is not part of a call, and whether it ended.

        ``raw`` is what was read before, with the opening bracket; each call is closed.
        """
        while True:
            white, char = yield from self._skip_space()
            raw += white
            if char != "{":
                self._read_again(char)
                return raw, False
            text, call = yield from self._object(char, arguments_key)
            if call is None:
                return raw + text, False
            self._close_call(call)
            raw, char = yield from self._skip_space()
            if char != ",":
                if char != "]":
                    self._read_again(char)
                return raw, char == "]"
            raw += char

    def _skip_space(self) -> Generator[None, str, tuple[str, str]]:
        """Read white space; returns it, and the first other character or ``END``."""
        white = ""
        while True:
            char = yield
            if char == END or char not in SPACE:
                return white, char
            white += char

    def _up_to(self, stops: str, char: str) -> Generator[None, str, tuple[str, str]]:
        """Read a head that begins with ``char``; returns it, and the character that ended it."""
        head = ""
        while char not in stops and len(head) < MAX_HEAD:
            head += char
            char = yield
        return head, char

    def _mark(self, mark: str) -> Generator[None, str, tuple[str, bool]]:
        """Read white space and a mark; returns what was read, and whether it was that."""
        raw, char = yield from self._skip_space()
        found = ""
        while char != END and mark.startswith(found + char):
            found += char
            if found == mark:
                return raw + found, True
            char = yield
        self._read_again(char)
        return raw + found, False


def _text(value: str | None) -> str | None:
    """The text that a JSON value is; None for another one."""
    if value is None or not value.startswith('"'):
        return None
    return str(json.loads(value))


def call_objects(
    tools: Sequence[Tool], schemas: Sequence[str], arguments_key: str
) -> tuple[str, ...]:
    """Rules of ``call_object``: a call of one of the tools as a JSON object."""
    key = literal(f'"{arguments_key}":')
    rules = [GAP, f"call_object: {' | '.join(f'object_{i}' for i in range(len(tools)))}"]
    for i, (tool, schema) in enumerate(zip(tools, schemas, strict=True)):
        name = literal(json.dumps(tool.name))
        rules.append(
            f'object_{i}: "{{" GAP "\\"name\\":" GAP {name} GAP "," GAP {key} GAP '
            f'%json {schema} GAP "}}"'
        )
    return tuple(rules)


@dataclass(frozen=True)
class TaggedJson(Dialect):
    """``<tool_call>{...}</tool_call>``: Hermes, Qwen, Granite and many ChatML models.

    ``is_list``: one tag holds a list of calls (``<TOOLCALL>[...]</TOOLCALL>``); read anyway.
    """

    name: ClassVar[str] = "hermes"
    open: str = "<tool_call>"
    close: str = "</tool_call>"
    is_list: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """Its tags."""
        return (self.open, self.close)

    @classmethod
    def of(cls, sample: str, tool: str) -> Self | None:
        """Recognise it in how a template writes a call of ``tool``."""
        pattern = r"<([\w:]+)>\s*(\[?)\s*\{\"name\": ?\"" + tool + r"\", ?\"arguments\": ?\{"
        found = re.search(pattern, sample)
        if found is None or f"</{found[1]}>" not in sample:
            return None
        return cls(f"<{found[1]}>", f"</{found[1]}>", bool(found[2]))

    def parser(self, tools: Sequence[Tool], *, id_prefix: str) -> CallParser:
        """A reader for one answer."""
        return _TaggedParser(self, tools, id_prefix=id_prefix)

    def grammar(
        self, tools: Sequence[Tool], schemas: Sequence[str], *, many: bool, quote: Quote
    ) -> CallGrammar:
        """Each call in a tag of its own, or all in one list."""
        inner = "call_object"
        if self.is_list:
            more = ' (GAP "," GAP call_object)*' if many else ""
            inner = f'"[" GAP call_object{more} GAP "]"'
        rest = f"call_rest: GAP {inner} GAP {quote(self.close)}"
        rules = (rest, *call_objects(tools, schemas, "arguments"))
        return CallGrammar(quote(self.open), rules, repeats=not self.is_list, between="GAP")


class _TaggedParser(JsonParser):
    def __init__(self, dialect: TaggedJson, tools: Sequence[Tool], *, id_prefix: str) -> None:
        self._dialect = dialect
        super().__init__(tools, id_prefix=id_prefix)

    def _read(self) -> Reading:
        while (yield from self._text_until((self._dialect.open,))) != END:
            white, char = yield from self._skip_space()
            raw = self._dialect.open + white
            if char == "[":
                yield from self._listed(raw + char)
            else:
                yield from self._one(raw, char)

    def _one(self, raw: str, char: str) -> Reading:
        """Read a call up to the tag's end; MiniMax M1 writes several in one tag."""
        while True:
            text, call = yield from self._object(char, "arguments")
            raw += text
            if call is None:
                break
            closing, found = yield from self._tag(self._dialect.close, "{")
            if not found:
                raw += closing
                break
            self._close_call(call)
            if closing.endswith(self._dialect.close):
                return
            raw, char = "", "{"
        self._say(raw)

    def _listed(self, raw: str) -> Reading:
        raw, ended = yield from self._list(raw, "arguments")
        if ended:
            raw, closed = yield from self._mark(self._dialect.close)
            raw = "" if closed else raw
        self._say(raw)


class Llama3(Dialect):
    """``{"name": ..., "parameters": {...}}`` as the whole answer, after ``<|python_tag|>`` or not.

    Source: Llama 3.1's model card, "JSON based tool calling". Calls beyond the first, which Llama
    3.2 and 3.3 sometimes write, are separated by ``;`` or white space.
    """

    name: ClassVar[str] = "llama3"
    tag: ClassVar[str] = "<|python_tag|>"

    @property
    def marks(self) -> tuple[str, ...]:
        """The tag, a control token."""
        return (self.tag,)

    @classmethod
    def of(cls, sample: str, tool: str) -> Self | None:
        """Recognise it in how a template writes a call of ``tool``."""
        pattern = r"[>\s]\{\"name\": ?\"" + tool + r"\", ?\"parameters\": ?\{"
        return cls() if re.search(pattern, sample) else None

    def parser(self, tools: Sequence[Tool], *, id_prefix: str) -> CallParser:
        """A reader for one answer."""
        return _Llama3Parser(tools, id_prefix=id_prefix)

    def grammar(
        self, tools: Sequence[Tool], schemas: Sequence[str], *, many: bool, quote: Quote
    ) -> CallGrammar:
        """One call: these models were trained to make one at a time."""
        rules = ("call_rest: call_object", *call_objects(tools, schemas, "parameters"))
        return CallGrammar("", rules, repeats=False)


class _Llama3Parser(JsonParser):
    def _read(self) -> Reading:
        raw, char = yield from self._skip_space()
        if char == Llama3.tag[0]:
            self._read_again(char)
            tag, _ = yield from self._mark(Llama3.tag)
            raw += tag
            white, char = yield from self._skip_space()
            raw += white
        while char == "{":
            text, call = yield from self._object(char, "parameters")
            raw += text
            if call is None:
                break
            self._close_call(call)
            raw, char = yield from self._separator()
        else:
            self._read_again(char)
        self._say("" if self.calls_seen and not raw.strip() else raw)
        while (yield from self._text_until(())) != END:
            pass

    def _separator(self) -> Generator[None, str, tuple[str, str]]:
        raw, char = yield from self._skip_space()
        if char != ";":
            return raw, char
        white, char = yield from self._skip_space()
        return raw + ";" + white, char


@dataclass(frozen=True)
class Mistral(Dialect):
    """``[TOOL_CALLS]`` and a list of calls, or ``[TOOL_CALLS]name[ARGS]{...}`` (since Small 3.2).

    Source: mistral-common's tokenizers v3 to v13. Both forms are read whatever ``named`` says.
    """

    name: ClassVar[str] = "mistral"
    named: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """Its control tokens."""
        return (_CALLS, _ID, _ARGS)

    @classmethod
    def of(cls, sample: str, tool: str) -> Self | None:
        """Recognise it in how a template writes a call of ``tool``."""
        if _CALLS not in sample:
            return None
        return cls(named=f"{_CALLS}{tool}[" in sample)

    def parser(self, tools: Sequence[Tool], *, id_prefix: str) -> CallParser:
        """A reader for one answer."""
        return _MistralParser(tools, id_prefix=id_prefix)

    def grammar(
        self, tools: Sequence[Tool], schemas: Sequence[str], *, many: bool, quote: Quote
    ) -> CallGrammar:
        """In the form that the model's template writes."""
        if self.named:
            calls = [
                f"named_{i}: {literal(tool.name)} {quote(_ARGS)} %json {schema}"
                for i, (tool, schema) in enumerate(zip(tools, schemas, strict=True))
            ]
            rest = f"call_rest: {' | '.join(f'named_{i}' for i in range(len(tools)))}"
            return CallGrammar(quote(_CALLS), (rest, *calls))
        more = ' (GAP "," GAP call_object)*' if many else ""
        rest = f'call_rest: GAP "[" GAP call_object{more} GAP "]"'
        return CallGrammar(
            quote(_CALLS), (rest, *call_objects(tools, schemas, "arguments")), repeats=False
        )

    def call_id(self, call_id: str) -> str:
        """Mistral's templates refuse ids that are not nine letters and digits."""
        if re.fullmatch(r"[A-Za-z0-9]{9}", call_id):
            return call_id
        digest = int.from_bytes(hashlib.sha256(call_id.encode()).digest()[:8])
        alphabet = string.ascii_letters + string.digits
        return "".join(alphabet[digest // len(alphabet) ** i % len(alphabet)] for i in range(9))


_CALLS, _ID, _ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAMED = re.compile(r"\s*([^\[\]\s]+)\s*(?:\[CALL_ID\][^\[\]]*)?\[ARGS\]\s*")


class _MistralParser(JsonParser):
    def _read(self) -> Reading:
        while (yield from self._text_until((_CALLS,))) != END:
            white, char = yield from self._skip_space()
            if char == "[":
                raw, ended = yield from self._list(_CALLS + white + char, "arguments")
                self._say("" if ended else raw)
            else:
                yield from self._named(_CALLS + white, char)

    def _named(self, raw: str, char: str) -> Reading:
        head, char = yield from self._up_to("{", char)
        found = _NAMED.fullmatch(head)
        if char != "{" or found is None or found[1] not in self._tools:
            self._read_again(char)
            self._say(raw + head)
            return
        text, call = yield from self._arguments(found[1], char)
        if call is None:
            self._say(raw + head + text)
        else:
            self._close_call(call)


class FunctionTag(Dialect):
    """``<function=name>{...}</function>``: functionary 3.1, and Llama 3.1's own custom form."""

    name: ClassVar[str] = "function_tag"

    @classmethod
    def of(cls, sample: str, tool: str) -> Self | None:
        """Recognise it in how a template writes a call of ``tool``."""
        return cls() if re.search(f"<function={tool}>" + r"\s*\{", sample) else None

    def parser(self, tools: Sequence[Tool], *, id_prefix: str) -> CallParser:
        """A reader for one answer."""
        return _FunctionTagParser(tools, id_prefix=id_prefix)

    def grammar(
        self, tools: Sequence[Tool], schemas: Sequence[str], *, many: bool, quote: Quote
    ) -> CallGrammar:
        """The name stands in the tag."""
        calls = [
            f"tagged_{i}: {literal(tool.name + '>')} %json {schema}"
            for i, (tool, schema) in enumerate(zip(tools, schemas, strict=True))
        ]
        one = " | ".join(f"tagged_{i}" for i in range(len(tools)))
        rest = f'call_rest: ({one}) "</function>"'
        return CallGrammar(quote("<function="), (rest, GAP, *calls), between="GAP")


class _FunctionTagParser(JsonParser):
    def _read(self) -> Reading:
        while (yield from self._text_until(("<function=",))) != END:
            name, char = yield from self._up_to("><", (yield))
            if char != ">" or name not in self._tools:
                self._read_again(char)
                self._say("<function=" + name)
                continue
            raw = f"<function={name}>"
            white, char = yield from self._skip_space()
            text, call = yield from self._arguments(name, char)
            raw += white + text
            closing, closed = "", False
            if call is not None:
                closing, closed = yield from self._mark("</function>")
            if call is not None and closed:
                self._close_call(call)
            else:
                self._say(raw + closing)
