"""What a family of models owes: how it writes tool calls, read and held to a grammar."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from overspill.types.chat import Tool, ToolCall, ToolCallDelta

Reading: TypeAlias = Generator[None, str, None]
"""A parser's own way through an answer: it is sent one character at a time, and ``END``."""

SPACE = " \t\r\n"
MAX_HEAD = 512
"""So long, at most, are a call's name and what stands about it."""

END = ""
"""Sent instead of a character when the answer has ended."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What became certain: text, whole calls, pieces of calls, and reasoning."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    deltas: tuple[ToolCallDelta, ...] = ()
    reasoning: str = ""

    def __add__(self, later: Parsed) -> Parsed:
        return Parsed(
            self.text + later.text,
            self.calls + later.calls,
            self.deltas + later.deltas,
            self.reasoning + later.reasoning,
        )


@dataclass(slots=True)
class OpenCall:
    """A call while it is written. Its arguments' pieces go out as they come."""

    index: int
    id: str
    name: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """As far as they are written."""
        return "".join(self.pieces)


@dataclass(slots=True)
class _Out:
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    grown: list[tuple[OpenCall, bool, list[str]]] = field(default_factory=list)
    """Calls with their new pieces, and whether these are their first."""


class CallParser(ABC):
    """Takes an answer in pieces of any size and tells text from calls.

    Each character is looked at once, in order, so the result does not depend on how the text was
    split. What only looks like a call (broken JSON, a tool that was not offered, no end) is handed
    out as text: nothing is lost, though pieces of that call may have gone out before.
    """

    def __init__(self, tools: Sequence[Tool], *, id_prefix: str) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._id_prefix = id_prefix
        self._out = _Out()
        self._opened = 0
        self.calls_seen = 0
        self._again = ""
        self._reading = self._read()
        next(self._reading)

    def feed(self, text: str) -> Parsed:
        """What these characters make certain."""
        for char in text:
            self._reading.send(char)
            while self._again:
                again, self._again = self._again, ""
                self._reading.send(again)
        return self._taken()

    def flush(self) -> Parsed:
        """What is left when the answer has ended."""
        try:
            # Each reader inside another one sees the end once.
            while True:
                self._reading.send(END)
        except StopIteration:
            return self._taken()

    @abstractmethod
    def _read(self) -> Reading:
        """The way through an answer; returns at ``END``."""

    # What readers use ---------------------------------------------------------------------------

    def _read_again(self, char: str) -> None:
        """Look at this character, the last one that came, once more: it belongs to what follows."""
        self._again = char

    def _say(self, text: str) -> None:
        if text:
            self._out.text.append(text)

    def _think(self, text: str) -> None:
        if text:
            self._out.reasoning.append(text)

    def _open_call(self, name: str) -> OpenCall:
        self._opened += 1
        return OpenCall(self._opened - 1, f"call_{self._id_prefix}_{self._opened}", name)

    def _grow(self, call: OpenCall, arguments: str) -> None:
        """Hand out a piece of a call's arguments."""
        grown = self._out.grown
        if not grown or grown[-1][0] is not call:
            grown.append((call, not call.pieces, []))
        grown[-1][2].append(arguments)
        call.pieces.append(arguments)

    def _close_call(self, call: OpenCall) -> None:
        self.calls_seen += 1
        self._out.calls.append(ToolCall(call.id, call.name, call.arguments))

    def _text_until(self, marks: Sequence[str]) -> Generator[None, str, str]:
        """Hand out text up to a mark; returns the mark, or ``END``.

        After a call, white space up to the next mark or the end belongs to the format.
        """
        held = white = ""
        after_call = self.calls_seen > 0
        while True:
            char = yield
            if char == END:
                self._say("" if after_call and not held else white + held)
                return END
            held += char
            while held and not any(mark.startswith(held) for mark in marks):
                if after_call and held[0].isspace():
                    white += held[0]
                else:
                    self._say(white + held[0])
                    white, after_call = "", False
                held = held[1:]
            if held in marks:
                if not after_call:
                    self._say(white)
                return held

    def _tag(self, *tags: str) -> Generator[None, str, tuple[str, bool]]:
        """Read white space and one of the tags; what was read ends with it where it was there."""
        white = found = ""
        while True:
            char = yield
            if not found and char != END and char in SPACE:
                white += char
            elif char != END and any(tag.startswith(found + char) for tag in tags):
                found += char
                if found in tags:
                    return white + found, True
            else:
                self._read_again(char)
                return white + found, False

    def _up_to_tag(self, *tags: str) -> Generator[None, str, tuple[str, str]]:
        """Read up to one of the tags, within reason; returns what stands before it, and the tag,
        or ``""`` where it did not come."""
        read = ""
        while len(read) < MAX_HEAD:
            char = yield
            if char == END:
                return read, ""
            read += char
            for tag in tags:
                if read.endswith(tag):
                    return read.removesuffix(tag), tag
        return read, ""

    def _taken(self) -> Parsed:
        out, self._out = self._out, _Out()
        deltas = tuple(
            ToolCallDelta(call.index, call.id, call.name, "".join(pieces))
            if first
            else ToolCallDelta(call.index, arguments="".join(pieces))
            for call, first, pieces in out.grown
        )
        return Parsed("".join(out.text), tuple(out.calls), deltas, "".join(out.reasoning))


Quote: TypeAlias = Callable[[str], str]
"""Writes a mark in Lark: by its token where it is one control token, else as text."""


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """A family's calls in llguidance's Lark.

    ``opening`` is the quoted mark that begins a call, "" where nothing does. ``rules`` define
    ``call_rest``, what follows it. ``repeats``: several calls come one after the other, each with
    its own opening, and ``between`` them a rule's body. ``begun`` is the rule's body for text up to
    the opening and with it, where that is not one mark.
    """

    opening: str
    rules: tuple[str, ...]
    repeats: bool = True
    between: str = ""
    begun: str = ""


class Dialect(ABC):
    """How one family of models writes tool calls."""

    name: ClassVar[str]
    always: ClassVar[bool] = False
    """Whether answers without tools are written in it too."""

    @property
    def marks(self) -> tuple[str, ...]:
        """What its parser has to see, also where that is a control token, which shows no text."""
        return ()

    @abstractmethod
    def parser(self, tools: Sequence[Tool], *, id_prefix: str) -> CallParser:
        """A reader for one answer."""

    @abstractmethod
    def grammar(
        self, tools: Sequence[Tool], schemas: Sequence[str], *, many: bool, quote: Quote
    ) -> CallGrammar:
        """The grammar of calls of these tools; ``schemas`` are their arguments', as JSON text.

        ``many``: an answer may hold more than one.
        """

    def call_id(self, call_id: str) -> str:
        """An id as the family's templates accept it, the same for the same id."""
        return call_id


def literal(text: str) -> str:
    """A text in Lark."""
    return json.dumps(text, ensure_ascii=False)
