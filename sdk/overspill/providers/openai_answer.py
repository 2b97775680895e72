"""OpenAI's streamed completion read as chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from overspill.errors import EngineError, StreamBroken
from overspill.types.chat import Chunk, Finish, FinishReason, ToolCall, ToolCallDelta
from overspill.types.usage import Usage

_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}


@dataclass
class StreamReader:
    """Fed the events' data, gives chunks; the end comes from :meth:`finish` once all is read."""

    model: str
    _calls: dict[int, ToolCall] = field(default_factory=dict)
    _reason: str | None = None
    _usage: Usage = field(default_factory=Usage)
    done: bool = False

    def feed(self, data: str) -> Iterator[Chunk]:
        """The chunks of one event. Raises ``EngineError`` for what is none."""
        if data == "[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
            if "error" in event:
                raise EngineError("The provider ended its answer with an error.")
            self._note(event)
            for choice in event.get("choices", ()):
                self._reason = choice.get("finish_reason") or self._reason
                yield self._chunk(choice.get("delta") or {})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise EngineError("The provider sent what is no chat completion.") from error

    def finish(self) -> Chunk:
        """The last chunk. Raises ``StreamBroken`` where the answer has no end, ``EngineError``
        where it ended for a reason that is not ours (a filter)."""
        if self._reason is None:
            raise StreamBroken("The provider's answer has no end.", mend="Try again.")
        reason = _REASONS.get(self._reason)
        if reason is None:
            raise EngineError(f"The provider ended its answer: {self._reason[:40]}.")
        calls = tuple(call for _, call in sorted(self._calls.items()))
        return Chunk(tool_calls=calls, finish=Finish(reason, self._usage, self.model))

    def _note(self, event: Mapping[str, Any]) -> None:
        self.model = event.get("model") or self.model
        usage = event.get("usage")
        if usage:
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            self._usage = Usage(
                int(usage["prompt_tokens"]), int(usage["completion_tokens"]), int(cached)
            )

    def _chunk(self, delta: Mapping[str, Any]) -> Chunk:
        return Chunk(
            text=delta.get("content") or delta.get("refusal") or "",
            reasoning=delta.get("reasoning_content") or "",
            tool_call_deltas=tuple(self._delta(one) for one in delta.get("tool_calls") or ()),
        )

    def _delta(self, raw: Mapping[str, Any]) -> ToolCallDelta:
        function = raw.get("function") or {}
        delta = ToolCallDelta(
            raw["index"],
            id=raw.get("id") or "",
            name=function.get("name") or "",
            arguments=function.get("arguments") or "",
        )
        known = self._calls.get(delta.index, ToolCall("", "", ""))
        self._calls[delta.index] = ToolCall(
            known.id or delta.id, known.name or delta.name, known.arguments + delta.arguments
        )
        return delta
