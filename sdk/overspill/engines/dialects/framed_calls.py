"""Families that frame a name and its JSON arguments with control tokens: Kimi K2, Solar Open.

::

    <|tool_calls_section_begin|><|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{...}
    <|tool_call_end|><|tool_calls_section_end|>                                          (Kimi K2)
    <|tool_calls|><|tool_call:begin|>id<|tool_call:name|>name<|tool_call:args|>{...}<|tool_call:end|>

Source: the families' own chat templates.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from overspill.engines.dialects.base import (
    END,
    MAX_HEAD,
    CallGrammar,
    CallParser,
    Dialect,
    Quote,
    Reading,
    literal,
)
from overspill.engines.dialects.json_calls import GAP, JsonParser
from overspill.types.chat import Tool


@dataclass(frozen=True)
class Frame:
    """The marks of one family. ``head`` matches what stands between ``open`` and ``arguments`` and
    finds the name in it; ``lead`` in Lark and the ``inner`` marks come before the name, ``trail``
    comes behind it.

    ``section_end`` "" where calls end without a mark of their own.
    """

    section: str
    section_end: str
    open: str
    arguments: str
    close: str
    head: str
    inner: tuple[str, ...] = ()
    lead: str = ""
    trail: str = ""


KIMI = Frame(
    section="<|tool_calls_section_begin|>",
    section_end="<|tool_calls_section_end|>",
    open="<|tool_call_begin|>",
    arguments="<|tool_call_argument_begin|>",
    close="<|tool_call_end|>",
    head=r"\s*(?:functions\.)?([^\s:]+)(?::\d+)?\s*",
    lead='"functions."',
    trail="/:[0-9]{1,3}/",
)
SOLAR = Frame(
    section="<|tool_calls|>",
    section_end="",
    open="<|tool_call:begin|>",
    arguments="<|tool_call:args|>",
    close="<|tool_call:end|>",
    head=r"[^<]*<\|tool_call:name\|>([^\s<]+)",
    inner=("<|tool_call:name|>",),
    lead="/[A-Za-z0-9_-]{1,40}/",
)


@dataclass(frozen=True)
class FramedCalls(Dialect):
    """Calls in a :class:`Frame`."""

    name: ClassVar[str] = "framed"
    frame: Frame = KIMI

    @property
    def marks(self) -> tuple[str, ...]:
        """All of the frame's marks, control tokens."""
        frame = self.frame
        all_marks = (frame.section, frame.section_end, frame.open, frame.arguments, frame.close)
        return tuple(mark for mark in (*all_marks, *frame.inner) if mark)

    @classmethod
    def of(cls, sample: str, tool: str) -> Self | None:
        """Recognise it in how a template writes a call of ``tool``."""
        for frame in (KIMI, SOLAR):
            _, opened, rest = sample.partition(frame.open)
            head, begun, _ = rest.partition(frame.arguments)
            found = re.fullmatch(frame.head, head)
            if opened and begun and found is not None and found[1] == tool:
                return cls(frame)
        return None

    def parser(self, tools: Sequence[Tool], *, id_prefix: str) -> CallParser:
        """A reader for one answer."""
        return _FramedParser(self.frame, tools, id_prefix=id_prefix)

    def grammar(
        self, tools: Sequence[Tool], schemas: Sequence[str], *, many: bool, quote: Quote
    ) -> CallGrammar:
        """All calls in one section."""
        frame = self.frame
        lead = " ".join((frame.lead, *map(quote, frame.inner)))
        calls = [
            f"framed_{i}: {lead} {literal(tool.name)} {frame.trail} {quote(frame.arguments)} "
            f"GAP %json {schema} GAP {quote(frame.close)}"
            for i, (tool, schema) in enumerate(zip(tools, schemas, strict=True))
        ]
        one = f"{quote(frame.open)} ({' | '.join(f'framed_{i}' for i in range(len(tools)))})"
        more = f" (GAP {one})*" if many else ""
        end = f" GAP {quote(frame.section_end)}" if frame.section_end else ""
        rest = f"call_rest: GAP {one}{more}{end}"
        return CallGrammar(quote(frame.section), (rest, GAP, *calls), repeats=False)


class _FramedParser(JsonParser):
    def __init__(self, frame: Frame, tools: Sequence[Tool], *, id_prefix: str) -> None:
        self._frame = frame
        super().__init__(tools, id_prefix=id_prefix)

    def _read(self) -> Reading:
        frame = self._frame
        while (mark := (yield from self._text_until((frame.section, frame.open)))) != END:
            raw, found = mark, mark == frame.open
            if not found:
                more, found = yield from self._tag(frame.open)
                raw += more
            while found:
                raw, found = yield from self._one(raw)
            self._say("" if self.calls_seen and not raw.strip() else raw)

    def _one(self, raw: str) -> Generator[None, str, tuple[str, bool]]:
        """Read a call; returns what is left as text, and whether another one was opened."""
        frame = self._frame
        head, begun = yield from self._up_to_tag(frame.arguments)
        raw += head + begun
        found = re.fullmatch(frame.head, head[:MAX_HEAD])
        if not begun or found is None or found[1] not in self._tools:
            return raw, False
        white, char = yield from self._skip_space()
        text, call = yield from self._arguments(found[1], char)
        raw += white + text
        if call is None:
            return raw, False
        more, closed = yield from self._tag(frame.close)
        if not closed:
            return raw + more, False
        self._close_call(call)
        ends = (frame.open, frame.section_end) if frame.section_end else (frame.open,)
        rest, found_end = yield from self._tag(*ends)
        if found_end and not rest.endswith(frame.open):
            return "", False
        return rest, found_end
