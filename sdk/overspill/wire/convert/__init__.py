"""Between overspill's types and the wire's messages; the only translation there is.

Decoding checks what protobuf cannot: unknown words and malformed JSON raise
:class:`~overspill.errors.InvalidRequest`. Unknown fields and events are ignored, as version 1
promises.
"""

from __future__ import annotations

from overspill.wire.convert.answers import (
    delta_to_chunk,
    final_to_finish,
    finish_to_final,
    write_delta,
)
from overspill.wire.convert.embeddings import (
    embed_reply_from_proto,
    embed_request_from_proto,
    embed_request_to_proto,
    embedding_to_proto,
)
from overspill.wire.convert.failures import (
    error_from_bytes,
    error_from_proto,
    error_to_bytes,
    error_to_proto,
)
from overspill.wire.convert.nodes import (
    bundle_from_proto,
    bundle_to_proto,
    card_from_proto,
    card_to_proto,
    cards_from_bytes,
    cards_to_bytes,
    replicas_to_bytes,
)
from overspill.wire.convert.requests import (
    request_from_proto,
    request_to_proto,
)

__all__ = [
    "bundle_from_proto",
    "bundle_to_proto",
    "card_from_proto",
    "card_to_proto",
    "cards_from_bytes",
    "cards_to_bytes",
    "delta_to_chunk",
    "embed_reply_from_proto",
    "embed_request_from_proto",
    "embed_request_to_proto",
    "embedding_to_proto",
    "error_from_bytes",
    "error_from_proto",
    "error_to_bytes",
    "error_to_proto",
    "final_to_finish",
    "finish_to_final",
    "replicas_to_bytes",
    "request_from_proto",
    "request_to_proto",
    "write_delta",
]
