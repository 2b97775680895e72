"""Tool calls in the Hermes form: ``<tool_call>{"name": ..., "arguments": ...}</tool_call>``.

The form that Qwen, Hermes and many ChatML models write. Text that only looks like a call
(broken JSON, a tool that wasn't offered, no end) is handed on as text: nothing is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from overspill.engines.text_stream import longest_held_suffix
from overspill.types.chat import ToolCall

OPEN = "<tool_call>"
CLOSE = "</tool_call>"


@dataclass(frozen=True, slots=True)
class Parsed:
    """Text and calls that became certain."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class ToolCallParser:
    """Takes an answer in pieces of any size and tells text from calls."""

    def __init__(self, names: Collection[str], *, id_prefix: str) -> None:
        self._names = frozenset(names)
        self._id_prefix = id_prefix
        self._held = ""
        self.calls_seen = 0

    def feed(self, text: str) -> Parsed:
        """Text and calls that are complete now."""
        self._held += text
        out: list[str] = []
        calls: list[ToolCall] = []
        while (block := self._next_block(out)) is not None:
            call = self._parse(block)
            if call is None:
                self._emit(out, OPEN + block + CLOSE)
            else:
                calls.append(call)
        return Parsed("".join(out), tuple(calls))

    def flush(self) -> Parsed:
        """What is left when the answer has ended: a call without its end is text."""
        out: list[str] = []
        self._emit(out, self._held)
        self._held = ""
        return Parsed("".join(out))

    def _next_block(self, out: list[str]) -> str | None:
        start = self._held.find(OPEN)
        if start < 0:
            keep = len(self._held) - longest_held_suffix(self._held, (OPEN,))
            self._emit(out, self._held[:keep])
            self._held = self._held[keep:]
            return None
        self._emit(out, self._held[:start])
        self._held = self._held[start:]
        end = self._held.find(CLOSE)
        if end < 0:
            return None
        block = self._held[len(OPEN) : end]
        self._held = self._held[end + len(CLOSE) :]
        return block

    def _emit(self, out: list[str], text: str) -> None:
        # Line breaks between calls belong to the format, not to the answer.
        if text and not (self.calls_seen and text.isspace()):
            out.append(text)

    def _parse(self, block: str) -> ToolCall | None:
        try:
            call = json.loads(block)
        except (json.JSONDecodeError, RecursionError):
            return None
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(name, str) or name not in self._names:
            return None
        arguments = call.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        self.calls_seen += 1
        return ToolCall(f"call_{self._id_prefix}_{self.calls_seen}", name, arguments)
