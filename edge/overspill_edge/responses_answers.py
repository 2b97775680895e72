"""Our answers in the shapes of OpenAI's responses: whole, and as its events in their order.

``response.created``, ``response.in_progress``; for each item ``response.output_item.added``, its
parts and deltas, ``response.output_item.done``; ``response.completed`` or ``.incomplete``. Events
are numbered from 0 without gaps. An ``overspill`` object rides on the response where the request
carried one.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from overspill.errors import EngineError
from overspill.types.chat import Finish, FinishReason, Request, TokenLogprob
from overspill.types.reply import ReplyChunk
from overspill.types.usage import Usage
from overspill_edge.dialect import AUTO_MODEL, named_event
from overspill_edge.openai_answers import (
    finish_of,
    overspill_object,
    reasoning_tokens,
    token_object,
)
from overspill_edge.problems import HttpProblem

_ERROR_CODES = {
    400: "invalid_prompt",
    429: "rate_limit_exceeded",
    503: "rate_limit_exceeded",
}
"""The dialect knows few; ours is a part of the message."""


class ResponseShape:
    """One answer. ``told_back`` is what it repeats of its request; ``with_route``: it says where
    it came from."""

    def __init__(
        self, request: Request, told_back: dict[str, Any], *, with_route: bool = False
    ) -> None:
        self._request = request
        self._told_back = told_back
        self._with_route = with_route
        self._created = int(time.time())
        self._model = request.model or AUTO_MODEL
        self._sequence = 0
        self._reasoning_tokens = 0
        self._output: list[dict[str, Any]] = []
        self._open: _Item | None = None
        self._called: set[str] = set()
        self._held_logprobs: tuple[TokenLogprob, ...] = ()

    def opening(self, first: ReplyChunk) -> Iterator[bytes]:
        """The response without its output, twice: as it was made, and now."""
        self._model = first.route.model
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response("in_progress"))

    def piece(self, piece: ReplyChunk) -> Iterator[bytes]:
        """One piece's deltas, in the items that they belong to."""
        self._reasoning_tokens += reasoning_tokens(piece)
        if piece.reasoning:
            yield from self._in_item(_Reasoning)
            yield from self._add(piece.reasoning)
        self._held_logprobs += piece.logprobs
        if piece.text:
            yield from self._in_item(_Message)
            yield from self._say(piece.text)
        for delta in piece.tool_call_deltas:
            if delta.id:
                yield from self._begin_call(delta.id, delta.name)
            if delta.arguments:
                yield from self._add(delta.arguments)
        for call in piece.tool_calls:
            # A peer that doesn't stream arguments sends its calls whole.
            if call.id not in self._called:
                yield from self._begin_call(call.id, call.name)
                yield from self._add(call.arguments)
            yield from self._end_item("completed")

    def closing(self, last: ReplyChunk) -> Iterator[bytes]:
        """The whole response."""
        finish = finish_of(last)
        yield from self._finish_items(finish)
        status = _status(finish)
        yield self._event(f"response.{status}", response=self._final(finish, last))

    def failing(self, problem: HttpProblem) -> Iterator[bytes]:
        """An error, and the response with what there is of it."""
        yield self._event("error", code=problem.code, message=problem.text, param=problem.param)
        list(self._end_item("incomplete"))
        response = self._response("failed")
        code = _ERROR_CODES.get(problem.status, "server_error")
        response["error"] = {"code": code, "message": f"{problem.code}: {problem.text}"}
        yield self._event("response.failed", response=response)

    def whole(self, pieces: Sequence[ReplyChunk]) -> dict[str, Any]:
        """The whole answer from all of its pieces."""
        finish = finish_of(pieces[-1])
        self._model = finish.model
        for piece in pieces:
            # What was streamed of a call that never became one is nothing here.
            list(self.piece(replace(piece, tool_call_deltas=())))
        list(self._finish_items(finish))
        return self._final(finish, pieces[-1])

    def _final(self, finish: Finish, last: ReplyChunk) -> dict[str, Any]:
        response = self._response(_status(finish))
        response["usage"] = self._usage(finish.usage)
        if response["status"] == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = int(time.time())
        if self._with_route:
            response["overspill"] = overspill_object(self._request, last)
        return response

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": f"resp_{self._request.id}",
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": list(self._output),
            "usage": None,
            **self._told_back,
        }

    def _finish_items(self, finish: Finish) -> Iterator[bytes]:
        if self._open is None and not self._output:
            yield from self._in_item(_Message)
        if self._held_logprobs and isinstance(self._open, _Message):
            yield from self._say("")
        cut = finish.reason is FinishReason.LENGTH
        yield from self._end_item("incomplete" if cut else "completed")

    def _in_item(self, kind: type[_Item]) -> Iterator[bytes]:
        """Begin an item of this kind unless one is open."""
        if not isinstance(self._open, kind):
            yield from self._leave()
            yield from self._begin(kind(*self._place(kind)))

    def _begin_call(self, call_id: str, name: str) -> Iterator[bytes]:
        self._called.add(call_id)
        self._held_logprobs = ()  # of the call's own tokens, which are no text
        yield from self._leave()
        item = _Call(*self._place(_Call))
        item.call_id, item.name = call_id, name
        yield from self._begin(item)

    def _place(self, kind: type[_Item]) -> tuple[str, int]:
        index = len(self._output)
        return f"{kind.prefix}_{self._request.id}_{index}", index

    def _leave(self) -> Iterator[bytes]:
        """End what is open before something else begins: a call is whole before that, or never."""
        yield from self._end_item("incomplete" if isinstance(self._open, _Call) else "completed")

    def _begin(self, item: _Item) -> Iterator[bytes]:
        self._open = item
        yield from map(self._numbered, item.begin())

    def _say(self, text: str) -> Iterator[bytes]:
        logprobs, self._held_logprobs = self._held_logprobs, ()
        yield from self._add(text, logprobs)

    def _add(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Iterator[bytes]:
        if self._open is None:
            raise EngineError("The model went on with what it had not begun.")
        yield from map(self._numbered, self._open.add(text, logprobs))

    def _end_item(self, status: str) -> Iterator[bytes]:
        item, self._open = self._open, None
        if item is not None:
            events = [self._numbered(event) for event in item.end(status)]
            self._output.append(item.document(status))
            yield from events

    def _event(self, kind: str, **fields: Any) -> bytes:
        return self._numbered({"type": kind, **fields})

    def _numbered(self, event: dict[str, Any]) -> bytes:
        event["sequence_number"] = self._sequence
        self._sequence += 1
        return named_event(event)

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
            "total_tokens": usage.total_tokens,
        }


class _Item(ABC):
    """One output item in the making; its events lack their numbers."""

    prefix = ""

    def __init__(self, item_id: str, index: int) -> None:
        self.id = item_id
        self.index = index
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._pieces)

    @abstractmethod
    def document(self, status: str) -> dict[str, Any]:
        """The item as it is now."""

    def begin(self) -> Iterator[dict[str, Any]]:
        """Its first events."""
        item = self.document("in_progress")
        yield {"type": "response.output_item.added", "output_index": self.index, "item": item}

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> Iterator[dict[str, Any]]:
        """More of it."""
        self._pieces.append(text)
        yield self._delta(text, logprobs)

    def end(self, status: str) -> Iterator[dict[str, Any]]:
        """Its last events."""
        yield from self._done()
        item = self.document(status)
        yield {"type": "response.output_item.done", "output_index": self.index, "item": item}

    @abstractmethod
    def _delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]: ...

    @abstractmethod
    def _done(self) -> Iterator[dict[str, Any]]: ...

    def _of(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "item_id": self.id, "output_index": self.index, **fields}


class _Message(_Item):
    prefix = "msg"

    def __init__(self, item_id: str, index: int) -> None:
        super().__init__(item_id, index)
        self._logprobs: list[dict[str, Any]] = []

    def document(self, status: str) -> dict[str, Any]:
        begun = status != "in_progress"
        return {
            "id": self.id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [self._part()] if begun else [],
        }

    def begin(self) -> Iterator[dict[str, Any]]:
        yield from super().begin()
        yield self._of("response.content_part.added", content_index=0, part=self._part())

    def _part(self) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": list(self._logprobs),
        }

    def _delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        told = [_token(token) for token in logprobs]
        self._logprobs += told
        kind = "response.output_text.delta"
        return self._of(kind, content_index=0, delta=text, logprobs=_brief(told))

    def _done(self) -> Iterator[dict[str, Any]]:
        yield self._of(
            "response.output_text.done",
            content_index=0,
            text=self.text,
            logprobs=_brief(self._logprobs),
        )
        yield self._of("response.content_part.done", content_index=0, part=self._part())


class _Reasoning(_Item):
    prefix = "rs"

    def document(self, status: str) -> dict[str, Any]:
        content = [self._part()] if status != "in_progress" else []
        return {
            "id": self.id,
            "type": "reasoning",
            "summary": [],
            "content": content,
            "status": status,
        }

    def begin(self) -> Iterator[dict[str, Any]]:
        yield from super().begin()
        yield self._of("response.content_part.added", content_index=0, part=self._part())

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.text}

    def _delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        return self._of("response.reasoning_text.delta", content_index=0, delta=text)

    def _done(self) -> Iterator[dict[str, Any]]:
        yield self._of("response.reasoning_text.done", content_index=0, text=self.text)
        yield self._of("response.content_part.done", content_index=0, part=self._part())


class _Call(_Item):
    prefix = "fc"

    call_id = ""
    name = ""

    def document(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.text,
        }

    def _delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        return self._of("response.function_call_arguments.delta", delta=text)

    def _done(self) -> Iterator[dict[str, Any]]:
        kind = "response.function_call_arguments.done"
        yield self._of(kind, name=self.name, arguments=self.text)


def _status(finish: Finish) -> str:
    if finish.reason is FinishReason.CANCELLED:
        raise EngineError("The answer was cancelled by the engine.")
    return "incomplete" if finish.reason is FinishReason.LENGTH else "completed"


def _token(token: TokenLogprob) -> dict[str, Any]:
    """Bytes are never null here; a part of a character has what its text shows."""
    told = token_object(token)
    for each in (told, *told["top_logprobs"]):
        each["bytes"] = list(each["token"].encode()) if each["bytes"] is None else each["bytes"]
    return told


def _brief(tokens: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without bytes, which events of a text do not have."""
    return [
        {
            "token": token["token"],
            "logprob": token["logprob"],
            "top_logprobs": [
                {"token": top["token"], "logprob": top["logprob"]} for top in token["top_logprobs"]
            ],
        }
        for token in tokens
    ]
