"""The way of an answer's bytes: UTF-8, then stop strings, then tool calls."""

from __future__ import annotations

from overspill.engines.text_stream import StopStrings, Utf8Stream
from overspill.engines.tool_calls import Parsed, ToolCallParser
from overspill.types.chat import Request


class AnswerText:
    """One answer in the making; ``released`` is all text that was handed out."""

    def __init__(self, request: Request) -> None:
        self._utf8 = Utf8Stream()
        self._stops = StopStrings(request.stop)
        listens = bool(request.tools) and request.tool_choice != "none"
        names = [tool.name for tool in request.tools]
        self._parser = ToolCallParser(names, id_prefix=request.id[:12]) if listens else None
        self._released: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._stops.stopped

    @property
    def called_tools(self) -> bool:
        """Whether a tool call was found."""
        return self._parser is not None and self._parser.calls_seen > 0

    @property
    def released(self) -> str:
        """All text handed out so far."""
        return "".join(self._released)

    def feed(self, data: bytes) -> Parsed:
        """What a token's bytes make certain."""
        return self._release(self._parse(self._stops.feed(self._utf8.feed(data))))

    def flush(self) -> Parsed:
        """What was held back, when the answer has ended."""
        parsed = self._parse(self._stops.feed(self._utf8.flush()) + self._stops.flush())
        if self._parser is not None:
            rest = self._parser.flush()
            parsed = Parsed(parsed.text + rest.text, parsed.calls + rest.calls)
        return self._release(parsed)

    def _parse(self, text: str) -> Parsed:
        if self._parser is None:
            return Parsed(text)
        return self._parser.feed(text)

    def _release(self, parsed: Parsed) -> Parsed:
        if parsed.text:
            self._released.append(parsed.text)
        return parsed
