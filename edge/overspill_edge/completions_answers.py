"""Our answers in the shape of OpenAI's completions, which is one for whole and streamed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from overspill.types.chat import Request, TokenLogprob
from overspill.types.reply import ReplyChunk
from overspill_edge.dialect import data_event
from overspill_edge.openai_answers import (
    DONE,
    LEAST_LOGPROB,
    finish_of,
    finish_reason,
    overspill_object,
    system_fingerprint,
    usage_object,
)
from overspill_edge.problems import HttpProblem


class TextCompletionShape:
    """One answer. ``with_usage``: a stream ends with its usage; ``with_route``: a whole answer
    has an ``overspill`` object."""

    def __init__(
        self, request: Request, *, with_usage: bool = False, with_route: bool = False
    ) -> None:
        self._request = request
        self._with_usage = with_usage
        self._with_route = with_route
        self._created = int(time.time())
        self._model = ""
        self._offset = len(request.messages[0].content)

    def opening(self, first: ReplyChunk) -> Iterator[bytes]:
        """Nothing comes before the text."""
        self._model = first.route.model
        return iter(())

    def piece(self, piece: ReplyChunk) -> Iterator[bytes]:
        """One piece's text with its log-probabilities."""
        if piece.text or piece.logprobs:
            yield data_event(self._document(piece.text, piece.logprobs, None))

    def closing(self, last: ReplyChunk) -> Iterator[bytes]:
        """Why it ended, and the usage."""
        finish = finish_of(last)
        yield data_event(self._document("", (), finish_reason(finish.reason)))
        if self._with_usage:
            document = self._document("", (), None)
            document |= {"choices": [], "usage": usage_object(finish.usage)}
            document["overspill"] = overspill_object(self._request, last)
            yield data_event(document)
        yield DONE

    def failing(self, problem: HttpProblem) -> Iterator[bytes]:
        """An error, and no ``[DONE]``."""
        yield data_event(problem.body())

    def whole(self, pieces: Sequence[ReplyChunk]) -> dict[str, Any]:
        """The whole answer from all of its pieces."""
        finish = finish_of(pieces[-1])
        self._model = finish.model
        text = "".join(piece.text for piece in pieces)
        logprobs = [token for piece in pieces for token in piece.logprobs]
        document = self._document(text, logprobs, finish_reason(finish.reason))
        document["usage"] = usage_object(finish.usage)
        if self._with_route:
            document["overspill"] = overspill_object(self._request, pieces[-1])
        return document

    def _document(
        self, text: str, logprobs: Sequence[TokenLogprob], reason: str | None
    ) -> dict[str, Any]:
        choice = {
            "index": 0,
            "text": text,
            "logprobs": self._logprobs(logprobs),
            "finish_reason": reason,
        }
        document: dict[str, Any] = {
            "id": f"cmpl-{self._request.id}",
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "system_fingerprint": system_fingerprint(self._model),
            "choices": [choice],
        }
        return {**document, "usage": None} if self._with_usage else document

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """Offsets count characters from the prompt's first."""
        if self._request.top_logprobs is None or not tokens:
            return None
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.token)
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [max(token.logprob, LEAST_LOGPROB) for token in tokens],
            "top_logprobs": [
                {text: max(logprob, LEAST_LOGPROB) for _, text, logprob in token.top}
                for token in tokens
            ],
            "text_offset": offsets,
        }
