"""Requests for embeddings, and the vectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast, get_args

from overspill.types.embedding import Embedding, EmbedReply, EmbedRequest, Pooling
from overspill.wire.convert.words import word
from overspill.wire.v1 import local_pb2


def embed_request_to_proto(request: EmbedRequest) -> local_pb2.EmbedRequest:
    """Encode a request for embeddings; the model is the one that is asked."""
    return local_pb2.EmbedRequest(
        id=request.id,
        texts=request.texts,
        pooling=request.pooling,
        normalize=request.normalize,
        dimensions=request.dimensions,
        app=request.app,
    )


def embed_request_from_proto(message: local_pb2.EmbedRequest) -> EmbedRequest:
    """Decode it; raises ``InvalidRequest`` on a pooling that means nothing."""
    return EmbedRequest(
        id=message.id,
        texts=tuple(message.texts),
        pooling=_pooling(message.pooling or "model"),
        normalize=message.normalize,
        dimensions=message.dimensions if message.HasField("dimensions") else None,
        app=message.app or "default",
    )


def embedding_to_proto(embedding: Embedding) -> local_pb2.Embedding:
    """Encode one text's vectors."""
    return local_pb2.Embedding(
        data=embedding.data, dimensions=embedding.dimensions, tokens=embedding.tokens
    )


def embed_reply_from_proto(
    embeddings: Iterable[local_pb2.Embedding], end: local_pb2.EmbedEnd
) -> EmbedReply:
    """Put the pieces of an answer together."""
    return EmbedReply(
        tuple(Embedding(e.data, e.dimensions, e.tokens) for e in embeddings),
        end.model,
        _pooling(end.pooling),
    )


def _pooling(name: str) -> Pooling:
    return cast(Pooling, word(name, get_args(Pooling), "pooling"))
