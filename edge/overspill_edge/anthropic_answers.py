"""Our answers in the shapes of Anthropic's messages: whole, and as its events in their order.

``message_start``; for each block ``content_block_start``, its deltas, ``content_block_stop``;
``message_delta`` with the reason and the usage; ``message_stop``. An ``overspill`` object rides on
``message_delta``, or on a whole answer, where the request carried one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from overspill.errors import EngineError
from overspill.types.card import ModelCard
from overspill.types.chat import Finish, FinishReason, Request
from overspill.types.reply import ReplyChunk
from overspill.types.usage import Usage
from overspill_edge.dialect import AUTO_MODEL, named_event
from overspill_edge.openai_answers import finish_of, overspill_object, reasoning_tokens
from overspill_edge.problems import HttpProblem


class MessageShape:
    """One answer. ``tells_thoughts``: they are blocks of it; ``with_route``: it says where it
    came from."""

    def __init__(
        self, request: Request, *, tells_thoughts: bool = False, with_route: bool = False
    ) -> None:
        self._request = request
        self._tells_thoughts = tells_thoughts
        self._with_route = with_route
        self._thought_tokens = 0
        self._index = -1
        self._open: str | None = None
        self._called: set[str] = set()

    def opening(self, first: ReplyChunk) -> Iterator[bytes]:
        """The message without its content."""
        message = self._message(first.route.model, [])
        message["usage"] = self._usage(Usage(prompt_tokens=_planned_tokens(first)))
        yield named_event({"type": "message_start", "message": message})

    def piece(self, piece: ReplyChunk) -> Iterator[bytes]:
        """One piece's deltas, in the blocks that they belong to."""
        self._thought_tokens += reasoning_tokens(piece)
        if piece.reasoning and self._tells_thoughts:
            yield from self._in_block("thinking", {"thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": piece.reasoning})
        if piece.text:
            yield from self._in_block("text", {"text": "", "citations": None})
            yield self._delta({"type": "text_delta", "text": piece.text})
        for delta in piece.tool_call_deltas:
            if delta.id:
                yield from self._begin_call(delta.id, delta.name)
            if delta.arguments:
                yield self._json_delta(delta.arguments)
        for call in piece.tool_calls:
            # A peer that doesn't stream arguments sends its calls whole.
            if call.id not in self._called:
                yield from self._begin_call(call.id, call.name)
                yield self._json_delta(call.arguments)

    def closing(self, last: ReplyChunk) -> Iterator[bytes]:
        """Why it ended and what it took, then the end."""
        finish = finish_of(last)
        yield from self._end_block()
        event: dict[str, Any] = {
            "type": "message_delta",
            "delta": {**self._ended(finish), "container": None},
            "usage": self._final_usage(finish.usage),
        }
        if self._with_route:
            event["overspill"] = overspill_object(self._request, last)
        yield named_event(event)
        yield named_event({"type": "message_stop"})

    def failing(self, problem: HttpProblem) -> Iterator[bytes]:
        """An error event, and no ``message_stop``."""
        yield named_event(problem.anthropic_body(f"req_{self._request.id}"))

    def whole(self, pieces: Sequence[ReplyChunk]) -> dict[str, Any]:
        """The whole answer from all of its pieces."""
        finish = finish_of(pieces[-1])
        self._thought_tokens = sum(map(reasoning_tokens, pieces))
        document = {
            **self._message(finish.model, list(self._content(pieces))),
            **self._ended(finish),
            "usage": self._usage(finish.usage),
        }
        if self._with_route:
            document["overspill"] = overspill_object(self._request, pieces[-1])
        return document

    def _message(self, model: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._request.id}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "container": None,
        }

    def _content(self, pieces: Sequence[ReplyChunk]) -> Iterator[dict[str, Any]]:
        thoughts = "".join(piece.reasoning for piece in pieces)
        if thoughts and self._tells_thoughts:
            yield {"type": "thinking", "thinking": thoughts, "signature": ""}
        if text := "".join(piece.text for piece in pieces):
            yield {"type": "text", "text": text, "citations": None}
        for call in (call for piece in pieces for call in piece.tool_calls):
            arguments = _arguments(call.arguments)
            yield {"type": "tool_use", **_call_head(call.id, call.name), "input": arguments}

    def _in_block(self, kind: str, empty: dict[str, Any]) -> Iterator[bytes]:
        """Begin a block of this kind unless one is open."""
        if self._open == kind:
            return
        yield from self._end_block()
        self._open, self._index = kind, self._index + 1
        block = {"type": kind, **empty}
        yield named_event(
            {"type": "content_block_start", "index": self._index, "content_block": block}
        )

    def _begin_call(self, call_id: str, name: str) -> Iterator[bytes]:
        self._called.add(call_id)
        yield from self._end_block()
        yield from self._in_block("tool_use", {**_call_head(call_id, name), "input": {}})

    def _end_block(self) -> Iterator[bytes]:
        if self._open == "thinking":
            # Nobody but this daemon made them, and it takes none back: nothing is signed.
            yield self._delta({"type": "signature_delta", "signature": ""})
        if self._open is not None:
            yield named_event({"type": "content_block_stop", "index": self._index})
        self._open = None

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return named_event({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _json_delta(self, arguments: str) -> bytes:
        return self._delta({"type": "input_json_delta", "partial_json": arguments})

    def _ended(self, finish: Finish) -> dict[str, Any]:
        return {
            "stop_reason": self._stop_reason(finish),
            "stop_sequence": finish.stop_sequence,
            "stop_details": None,
        }

    def _stop_reason(self, finish: Finish) -> str:
        match finish.reason:
            case FinishReason.STOP:
                return "end_turn" if finish.stop_sequence is None else "stop_sequence"
            case FinishReason.TOOL_CALLS:
                return "tool_use"
            case FinishReason.LENGTH:
                room = self._request.max_tokens or 0
                filled = finish.usage.completion_tokens < room
                return "model_context_window_exceeded" if filled else "max_tokens"
            case FinishReason.CANCELLED:
                raise EngineError("The answer was cancelled by the engine.")

    def _final_usage(self, usage: Usage) -> dict[str, Any]:
        """What ``message_delta`` says of it: no more than the dialect has there."""
        told = self._usage(usage)
        return {key: told[key] for key in told.keys() & _DELTA_USAGE}

    def _usage(self, usage: Usage) -> dict[str, Any]:
        """Anthropic counts what a cache held apart from the rest of the prompt."""
        return {
            "input_tokens": max(usage.prompt_tokens - usage.cached_tokens, 0),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "cache_creation": None,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": self._thought_tokens},
            "server_tool_use": None,
            "service_tier": "standard",
            "inference_geo": None,
        }


_DELTA_USAGE = {
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "output_tokens_details",
    "server_tool_use",
}


def _planned_tokens(first: ReplyChunk) -> int:
    """The prompt's tokens as the decision counted them: the engine's own count comes last."""
    numbers = (stage.numbers for stage in first.route.decision.stages)
    return next((int(n["prompt_tokens"]) for n in numbers if "prompt_tokens" in n), 0)


def _call_head(call_id: str, name: str) -> dict[str, Any]:
    """The caller is the model itself: nothing is executed here."""
    return {"id": call_id, "name": name, "caller": {"type": "direct"}}


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise EngineError("The model's tool call has arguments that are no JSON object.")
    return arguments


def model_list(cards: Iterable[ModelCard], created: int) -> dict[str, Any]:
    """All models on one page, and ``auto``, which leaves the choice to the policy."""
    by_name = {card.name: card for card in cards}
    names = [AUTO_MODEL, *by_name]
    return {
        "data": [model_object(name, by_name.get(name), created) for name in names],
        "has_more": False,
        "first_id": names[0],
        "last_id": names[-1],
    }


def model_object(name: str, card: ModelCard | None, created: int) -> dict[str, Any]:
    """One model. ``created`` is when this daemon began to offer it, in Unix seconds."""
    context = card.context if card is not None and card.context else None
    return {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": context,
        "max_tokens": context,
        "capabilities": None,
    }
