"""Our answers in the shapes of OpenAI's chat completions: whole, in chunks, and as models.

Bodies stay in the dialect. What is ours is told in headers; an ``overspill`` object rides on the
usage chunk of a stream, and on a whole answer whose request carried one.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from overspill._version import __version__
from overspill.errors import EngineError
from overspill.types.card import ModelCard
from overspill.types.chat import (
    Finish,
    FinishReason,
    Request,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)
from overspill.types.reply import ReplyChunk
from overspill.types.route import Route
from overspill.types.usage import Usage
from overspill_edge.dialect import AUTO_MODEL, data_event
from overspill_edge.problems import HttpProblem

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0
"""JSON has no infinity; this is the dialect's word for "never"."""
_UNDECODABLE = "\ufffd"


def route_headers(piece: ReplyChunk) -> dict[str, str]:
    """The route, why, and the receipt's id: ``none`` where nothing left the device, ``pending``
    at the head of a stream, for a node signs at the end (the usage chunk has it then)."""
    stayed = piece.route.route is Route.DEVICE
    return {
        "X-Overspill-Route": piece.route.route.value,
        "X-Overspill-Reason": piece.route.reason.value,
        "X-Overspill-Receipt": piece.receipt.id
        if piece.receipt
        else ("none" if stayed else "pending"),
    }


def overspill_object(request: Request, last: ReplyChunk) -> dict[str, Any]:
    """How the answer came about; ``receipt`` is the node's signed bytes in base64.

    ``thrown_tokens`` were generated on the device and shown to nobody: the answer's usage is not
    theirs.
    """
    route, receipt = last.route, last.receipt
    return {
        "request_id": request.id,
        "route": route.route.value,
        "reason": route.reason.value,
        "model": route.model,
        "bytes_sent": route.bytes_sent,
        "assurance": route.assurance,
        "node": route.node,
        "changes": list(route.changes),
        "low_confidence": route.low_confidence,
        "thrown_tokens": route.thrown.completion_tokens,
        "receipt_id": None if receipt is None else receipt.id,
        "receipt": None if receipt is None else base64.b64encode(receipt.data).decode(),
    }


class CompletionShape:
    """One answer, whole or in chunks.

    ``with_usage``: a stream ends with its usage. ``with_route``: a whole answer has an
    ``overspill`` object.
    """

    def __init__(
        self, request: Request, *, with_usage: bool = False, with_route: bool = False
    ) -> None:
        self._request = request
        self._with_usage = with_usage
        self._with_route = with_route
        self._streamed: dict[str, int] = {}
        self._reasoning_tokens = 0
        self._common: dict[str, Any] = {}

    def opening(self, first: ReplyChunk) -> Iterator[bytes]:
        """The first chunk: who speaks."""
        self._common = self._head(first.route.model)
        yield data_event(self._chunk({"role": "assistant", "content": "", "refusal": None}))

    def piece(self, piece: ReplyChunk) -> Iterator[bytes]:
        """One piece's chunks."""
        self._reasoning_tokens += reasoning_tokens(piece)
        return map(data_event, self._piece_chunks(piece))

    def closing(self, last: ReplyChunk) -> Iterator[bytes]:
        """The last chunk with a choice says why it ended; the usage's has none."""
        finish = finish_of(last)
        yield data_event(self._chunk({}, finish_reason=finish_reason(finish.reason)))
        if self._with_usage:
            yield data_event(self._usage_chunk(last, finish.usage))
        yield DONE

    def failing(self, problem: HttpProblem) -> Iterator[bytes]:
        """An error, and no ``[DONE]``."""
        yield data_event(problem.body())

    def _head(self, model: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._request.id}",
            "created": int(time.time()),
            "model": model,
            "service_tier": "default",
            "system_fingerprint": system_fingerprint(model),
        }

    def _piece_chunks(self, piece: ReplyChunk) -> list[dict[str, Any]]:
        """One piece's reasoning, text, log-probabilities and calls: a chunk for each kind."""
        chunks: list[dict[str, Any]] = []
        if piece.reasoning:
            chunks.append(self._chunk({"reasoning_content": piece.reasoning}))
        if piece.text or piece.logprobs:
            chunks.append(self._chunk({"content": piece.text}, logprobs=self._logprobs(piece)))
        calls = [self._call_delta(delta) for delta in piece.tool_call_deltas]
        # A peer that doesn't stream arguments sends its calls whole.
        calls += [self._whole_call(c) for c in piece.tool_calls if c.id not in self._streamed]
        if calls:
            chunks.append(self._chunk({"tool_calls": calls}))
        return chunks

    def _usage_chunk(self, last: ReplyChunk, usage: Usage) -> dict[str, Any]:
        """The chunk without choices that ends a stream asked for with ``include_usage``."""
        return {
            **self._common,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": self._usage(usage),
            "overspill": overspill_object(self._request, last),
        }

    def _usage(self, usage: Usage) -> dict[str, Any]:
        predicted = bool(self._request.draft)
        return usage_object(usage, predicted=predicted, reasoning=self._reasoning_tokens)

    def whole(self, pieces: Sequence[ReplyChunk]) -> dict[str, Any]:
        """The whole answer from all of its pieces."""
        finish = finish_of(pieces[-1])
        self._reasoning_tokens = sum(map(reasoning_tokens, pieces))
        text = "".join(piece.text for piece in pieces)
        calls = [call for piece in pieces for call in piece.tool_calls]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text or (None if calls else ""),
            "refusal": None,
            "annotations": [],
        }
        if reasoning := "".join(piece.reasoning for piece in pieces):
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(*pieces),
            "finish_reason": finish_reason(finish.reason),
        }
        document = {
            **self._head(finish.model),
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(finish.usage),
        }
        if self._with_route:
            document["overspill"] = overspill_object(self._request, pieces[-1])
        return document

    def _chunk(
        self,
        delta: Mapping[str, Any],
        *,
        logprobs: Mapping[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = {**self._common, "object": "chat.completion.chunk", "choices": [choice]}
        return {**chunk, "usage": None} if self._with_usage else chunk

    def _call_delta(self, delta: ToolCallDelta) -> dict[str, Any]:
        if not delta.id:
            return {"index": delta.index, "function": {"arguments": delta.arguments}}
        self._streamed[delta.id] = delta.index
        call = _call(ToolCall(delta.id, delta.name, delta.arguments))
        return {"index": delta.index, **call}

    def _whole_call(self, call: ToolCall) -> dict[str, Any]:
        self._streamed[call.id] = len(self._streamed)
        return {"index": self._streamed[call.id], **_call(call)}

    def _logprobs(self, *pieces: ReplyChunk) -> dict[str, Any] | None:
        if self._request.top_logprobs is None:
            return None
        content = [token_object(token) for piece in pieces for token in piece.logprobs]
        return {"content": content, "refusal": None}


def usage_object(usage: Usage, *, predicted: bool = False, reasoning: int = 0) -> dict[str, Any]:
    """Token counts with their details; ``predicted``: the request came with a prediction, whose
    tokens that were checked are counted. What is not worth checking is in neither count."""
    accepted = usage.accepted_tokens if predicted else 0
    rejected = usage.drafted_tokens - accepted if predicted else 0
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "audio_tokens": 0,
            "reasoning_tokens": reasoning,
            "rejected_prediction_tokens": rejected,
        },
    }


def system_fingerprint(model: str) -> str:
    """The same while release and model are: seeds repeat under one fingerprint."""
    return "fp_" + hashlib.sha256(f"{__version__}\0{model}".encode()).hexdigest()[:10]


def model_list(cards: Iterable[ModelCard], created: int) -> dict[str, Any]:
    """All models, and ``auto``, which leaves the choice to the policy."""
    names = [AUTO_MODEL, *dict.fromkeys(card.name for card in cards)]
    return {"object": "list", "data": [model_object(name, created) for name in names]}


def model_object(name: str, created: int) -> dict[str, Any]:
    """One model. ``created`` is when this daemon began to offer it, in Unix seconds."""
    return {"id": name, "object": "model", "created": created, "owned_by": "overspill"}


def finish_of(piece: ReplyChunk) -> Finish:
    """The end that the last piece carries."""
    if piece.finish is None:
        raise AssertionError("the last piece has no finish")
    return piece.finish


def reasoning_tokens(piece: ReplyChunk) -> int:
    """Tokens of a piece that was thought and not said."""
    return len(piece.token_ids) if piece.reasoning and not piece.text else 0


def finish_reason(reason: FinishReason) -> str:
    """The dialect's word for it, which is ours."""
    if reason is FinishReason.CANCELLED:
        raise EngineError("The answer was cancelled by the engine.")
    return reason.value


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def token_object(token: TokenLogprob) -> dict[str, Any]:
    """One token with its log-probability and the alternatives to it."""
    top = [_alternative(text, logprob) for _, text, logprob in token.top]
    return {**_alternative(token.token, token.logprob), "top_logprobs": top}


def _alternative(text: str, logprob: float) -> dict[str, Any]:
    """``bytes`` is null where a token is a part of a character, which its text cannot show."""
    raw = None if _UNDECODABLE in text else list(text.encode())
    return {"token": text, "bytes": raw, "logprob": max(logprob, LEAST_LOGPROB)}
