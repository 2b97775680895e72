"""Embeddings without weights: counts of what a text is written with, for trying things out.

Each byte, with the two before it, adds to one of 64 values, so that texts which share words are
near each other. It means nothing.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence

from overspill.types.card import ModelCard
from overspill.types.embedding import Pooling

DIMENSIONS = 64
DEFAULT_CONTEXT_TOKENS = 4096


class EchoEmbeddingModel:
    """See :class:`~overspill.engines.embedder.EmbeddingModel`; a byte is a token."""

    batch_tokens = 512
    max_texts = 32
    dimensions = DIMENSIONS
    pooling: Pooling | None = "mean"

    def __init__(self, name: str = "echo", *, context_tokens: int = DEFAULT_CONTEXT_TOKENS) -> None:
        self._card = ModelCard(
            name=name,
            context=context_tokens,
            runtime="echo",
            quantization="none",
            modalities=("text", "embedding"),
        )

    @property
    def card(self) -> ModelCard:
        """It says that it is an echo."""
        return self._card

    def tokenize(self, text: str) -> list[int]:
        """The bytes."""
        return list(text.encode("utf-8", "replace"))

    def run(
        self, texts: Sequence[Sequence[int]], pooling: Pooling, *, normalize: bool
    ) -> list[bytes]:
        """The same for the same text, whatever stands beside it."""
        return [_vectors(bytes(text), pooling, normalize) for text in texts]

    def interrupt(self) -> None:
        """Nothing runs for long."""

    def rearm(self) -> None:
        """Nothing was interrupted."""

    def close(self) -> None:
        """Nothing is held."""


def _vectors(text: bytes, pooling: Pooling, normalize: bool) -> bytes:
    rows = [_row(text[max(0, at - 2) : at + 1]) for at in range(len(text))]
    if pooling == "mean":
        rows = [[sum(column) / len(rows) for column in zip(*rows, strict=True)]]
    elif pooling in ("cls", "last"):
        rows = [rows[0 if pooling == "cls" else -1]]
    values: list[float] = []
    for row in rows:
        length = (math.hypot(*row) or 1.0) if normalize else 1.0
        values += (value / length for value in row)
    return struct.pack(f"<{len(values)}f", *values)


def _row(gram: bytes) -> list[float]:
    row = [0.0] * DIMENSIONS
    row[hashlib.sha256(gram).digest()[0] % DIMENSIONS] = 1.0
    return row
