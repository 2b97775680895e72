"""llama-server's log-probabilities: OpenAI's shape, with the token's id beside its text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from overspill.errors import EngineError
from overspill.types.chat import TokenLogprob


def logprobs_of(data: str, most: int) -> tuple[TokenLogprob, ...]:
    """Those in one event of a streamed completion, with at most so many alternatives each.

    Raises ``EngineError`` for another shape.
    """
    if data == "[DONE]":
        return ()
    try:
        choices = json.loads(data).get("choices") or ()
        return tuple(
            _one(entry, most)
            for choice in choices
            for entry in (choice.get("logprobs") or {}).get("content") or ()
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineError("The upstream sent what are no log-probabilities.") from error


def _one(entry: Mapping[str, Any], most: int) -> TokenLogprob:
    top = tuple(_pair(other) for other in (entry.get("top_logprobs") or ())[:most])
    token_id, token, logprob = _pair(entry)
    return TokenLogprob(token_id, token, logprob, top)


def _pair(entry: Mapping[str, Any]) -> tuple[int, str, float]:
    return int(entry["id"]), str(entry["token"]), float(entry["logprob"])
