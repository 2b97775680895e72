"""OpenAI's embeddings: its request as one of ours, our vectors in its shape.

Every parameter is honoured or refused by name. ``pooling`` and ``normalize`` are ours and ride in
an ``overspill`` object. Token ids as input are refused: they are another vocabulary's.

Source: the API reference of ``POST /v1/embeddings`` and the types of ``openai`` 2 and 3.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from overspill.errors import OverspillError, UnsupportedOption
from overspill.types.embedding import EmbedReply, EmbedRequest, Pooling
from overspill_edge.body import Parameters, Strict, checked
from overspill_edge.dialect import AUTO_MODEL
from overspill_edge.problems import HttpProblem, problem_of

MAX_INPUTS = 2048


def _texts(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and any(isinstance(item, int | list) for item in value):
        raise PydanticCustomError(
            "token_ids", "Token ids are another model's; send the texts themselves"
        )
    return value


class _Ours(Strict):
    pooling: Pooling = "model"
    normalize: bool = True


class EmbeddingsRequest(Strict):
    """A body that was checked."""

    model: Annotated[str, Field(min_length=1)]
    input: Annotated[list[str], BeforeValidator(_texts), Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None
    overspill: _Ours = _Ours()

    def to_request(self, app: str) -> EmbedRequest:
        """As one of ours. Pooling ``none`` is refused: the dialect has one vector for a text."""
        if self.overspill.pooling == "none":
            raise UnsupportedOption(
                "This endpoint gives one vector for a text.",
                param="overspill.pooling",
                mend="Use mean, cls, last or model.",
            )
        return EmbedRequest(
            texts=tuple(self.input),
            model=None if self.model == AUTO_MODEL else self.model,
            app=app,
            pooling=self.overspill.pooling,
            normalize=self.overspill.normalize,
            dimensions=self.dimensions,
        )


def parse_embeddings(body: bytes) -> EmbeddingsRequest:
    """A checked body. Raises ``InvalidRequest`` that names the parameter."""
    return checked(EmbeddingsRequest, body, Parameters())


def in_dialect(error: OverspillError) -> HttpProblem:
    """The error as it is told, its parameter named as the dialect does."""
    problem = problem_of(error)
    names = {"texts": "input", "messages": "input", "pooling": "overspill.pooling"}
    problem.param = names.get(problem.param or "", problem.param)
    return problem


def embedding_list(reply: EmbedReply, *, base64_data: bool) -> dict[str, Any]:
    """The answer; in base64 a vector is its little-endian float32 bytes."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(embedding.data).decode()
            if base64_data
            else list(embedding.vector),
        }
        for index, embedding in enumerate(reply.embeddings)
    ]
    tokens = reply.prompt_tokens
    return {
        "object": "list",
        "data": data,
        "model": reply.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
