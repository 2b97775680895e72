"""The way of an answer's bytes: UTF-8, then stop strings, then reasoning, then tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from overspill.engines.backend import Backend
from overspill.engines.chat_probe import TemplateAbilities
from overspill.engines.dialects import CallParser, Dialect, Parsed
from overspill.engines.reasoning import CLOSE, OPEN, ReasoningParser
from overspill.engines.text_stream import StopStrings, Utf8Stream
from overspill.types.chat import Request


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How a model's answers are written.

    ``spelled`` are the bytes of control tokens that mean something in them: such a token shows
    no text otherwise. ``thinks`` and ``thinking_is_open`` as in ``TemplateAbilities``.
    """

    dialect: Dialect | None = None
    thinks: bool = False
    thinking_is_open: bool = False
    spelled: Mapping[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, abilities: TemplateAbilities, backend: Backend) -> AnswerForm:
        """The form that a model's template implies, over its vocabulary."""
        dialect = abilities.dialect
        marks = (*(dialect.marks if dialect else ()), *((OPEN, CLOSE) if abilities.thinks else ()))
        spelled = {}
        for mark in marks:
            tokens = backend.tokenize(mark, special=True)
            if len(tokens) == 1 and not backend.token_bytes(tokens[0]):
                spelled[tokens[0]] = mark.encode()
        return cls(dialect, abilities.thinks, abilities.thinking_is_open, spelled)

    def token_of(self, mark: str) -> int | None:
        """The control token that is this mark; None where it is written as text."""
        return next((t for t, spelled in self.spelled.items() if spelled == mark.encode()), None)


class AnswerText:
    """One answer in the making; ``released`` is all text that was handed out."""

    def __init__(self, request: Request, form: AnswerForm | None = None) -> None:
        form = form or AnswerForm()
        self._utf8 = Utf8Stream()
        self._stops = StopStrings(request.stop)
        self._parsers = _parsers(request, form)
        self._calls = self._parsers[-1] if self._parsers else None
        self._spelled = form.spelled if self._parsers else {}
        self._released: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._stops.stopped

    @property
    def stop_sequence(self) -> str | None:
        """The stop string that is complete."""
        return self._stops.found

    @property
    def called_tools(self) -> bool:
        """Whether a tool call was found."""
        return self._calls is not None and self._calls.calls_seen > 0

    @property
    def released(self) -> str:
        """All text handed out so far."""
        return "".join(self._released)

    def feed_token(self, token: int, data: bytes) -> Parsed:
        """What a token makes certain; ``data`` are its bytes, as the backend gives them."""
        return self.feed(data or self._spelled.get(token, b""))

    def feed(self, data: bytes) -> Parsed:
        """What these bytes make certain."""
        return self._release(self._parse(self._stops.feed(self._utf8.feed(data))))

    def flush(self) -> Parsed:
        """What was held back, when the answer has ended."""
        parsed = self._parse(self._stops.feed(self._utf8.flush()) + self._stops.flush())
        for at, parser in enumerate(self._parsers):
            parsed += _through(self._parsers[at + 1 :], parser.flush())
        return self._release(parsed)

    def _parse(self, text: str) -> Parsed:
        return _through(self._parsers, Parsed(text))

    def _release(self, parsed: Parsed) -> Parsed:
        if parsed.text:
            self._released.append(parsed.text)
        return parsed


def _parsers(request: Request, form: AnswerForm) -> list[CallParser]:
    parsers: list[CallParser] = []
    if request.raw:
        return parsers
    if form.thinks:
        # Text that goes on from a prefix is past its beginning.
        is_open = form.thinking_is_open and not request.prefix
        parsers.append(ReasoningParser(is_open=is_open))
    if form.dialect is not None and (request.offers_tools or form.dialect.always):
        tools = request.tools if request.offers_tools else ()
        parsers.append(form.dialect.parser(tools, id_prefix=request.id[:12]))
    return parsers


def _through(parsers: list[CallParser], parsed: Parsed) -> Parsed:
    """Send text through the parsers; what they took out of it stays beside."""
    for parser in parsers:
        out = parser.feed(parsed.text)
        parsed = Parsed(
            out.text,
            parsed.calls + out.calls,
            parsed.deltas + out.deltas,
            parsed.reasoning + out.reasoning,
        )
    return parsed
