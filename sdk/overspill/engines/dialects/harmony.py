"""gpt-oss's harmony format: messages with channels, recipients and control tokens.

``<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...``: what
is thought goes to ``analysis``, calls to ``commentary to=functions.name``, the answer to ``final``.
Read here and not by the openai-harmony package, which fetches its vocabulary from a third party
when it is first used. Source: https://github.com/openai/harmony, docs/format.md.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
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

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
CONSTRAIN, END_MESSAGE, CALL, RETURN = "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"
_ENDS = (END_MESSAGE, CALL, RETURN)
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=functions\.([^\s<]+)")
_MAX_HEAD = 512


class Harmony(Dialect):
    """gpt-oss; its answers are in this form with and without tools."""

    name: ClassVar[str] = "harmony"
    always: ClassVar[bool] = True

    @property
    def marks(self) -> tuple[str, ...]:
        """Its control tokens."""
        return (START, CHANNEL, MESSAGE, CONSTRAIN, END_MESSAGE, CALL, RETURN)

    @classmethod
    def of(cls, sample: str, tool: str) -> Self | None:
        """Recognise it in how a template writes a call of ``tool``."""
        return cls() if f"to=functions.{tool}" in sample and MESSAGE in sample else None

    def parser(self, tools: Sequence[Tool], *, id_prefix: str) -> CallParser:
        """A reader for one answer."""
        return _HarmonyParser(tools, id_prefix=id_prefix)

    def grammar(
        self, tools: Sequence[Tool], schemas: Sequence[str], *, many: bool, quote: Quote
    ) -> CallGrammar:
        """One call: it ends the model's turn."""
        calls = [
            f"to_{i}: {literal(f'commentary to=functions.{tool.name} ')} {quote(CONSTRAIN)} "
            f'"json" {quote(MESSAGE)} %json {schema}'
            for i, (tool, schema) in enumerate(zip(tools, schemas, strict=True))
        ]
        rest = f"call_rest: {' | '.join(f'to_{i}' for i in range(len(tools)))}"
        return CallGrammar(quote(CHANNEL), (rest, *calls), repeats=False)


def analysis(quote: Quote) -> tuple[str, str, str]:
    """A message of thoughts in Lark: what comes before them, what ends them, and what follows."""
    before = f'{quote(CHANNEL)} "analysis" {quote(MESSAGE)}'
    return before, quote(END_MESSAGE), f'{quote(START)} "assistant"'


def final(quote: Quote) -> str:
    """The head of the answer proper, in Lark."""
    return f'{quote(CHANNEL)} "final" {quote(MESSAGE)}'


class _HarmonyParser(JsonParser):
    def _read(self) -> Reading:
        ended = False
        while not ended:
            head, complete = yield from self._head()
            if not complete:
                # Not in the format: nothing but text up to the next message.
                self._say(head)
                ended = yield from self._content(thinks=False)
                continue
            channel, recipient = _CHANNEL.search(head), _RECIPIENT.search(head)
            if recipient is not None and recipient[1] in self._tools:
                ended = yield from self._call(head, recipient[1])
            elif channel is not None and channel[1] == "analysis" and recipient is None:
                ended = yield from self._content(thinks=True)
            else:
                # A call of what was not offered is shown with its head.
                self._say("" if recipient is None else head)
                ended = yield from self._content(thinks=False)

    def _head(self) -> Generator[None, str, tuple[str, bool]]:
        """Read up to ``<|message|>``; the second value is False where that did not come."""
        head = ""
        while not head.endswith(MESSAGE):
            char = yield
            head += char
            if char == END or head.lstrip()[:1] not in ("", "<", "t") or len(head) > _MAX_HEAD:
                return head, False
        return head, True

    def _content(self, *, thinks: bool) -> Generator[None, str, bool]:
        """Hand out a message up to its end; True when the answer ended."""
        held = ""
        while True:
            char = yield
            if char == END:
                (self._think if thinks else self._say)(held)
                return True
            held += char
            while held and not any(mark.startswith(held) for mark in _ENDS):
                (self._think if thinks else self._say)(held[0])
                held = held[1:]
            if held in _ENDS:
                return False

    def _call(self, head: str, name: str) -> Generator[None, str, bool]:
        white, char = yield from self._skip_space()
        text, call = yield from self._arguments(name, char)
        if call is None:
            self._say(head + white + text)
            return (yield from self._content(thinks=False))
        self._close_call(call)
        return (yield from self._content(thinks=False))
