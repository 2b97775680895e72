"""Texts to be embedded, and the vectors that come back."""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass, field
from typing import Literal

from overspill.types.chat import new_request_id

Pooling = Literal["model", "mean", "cls", "last", "none"]
"""How a text's token vectors become one: their mean, the first, the last; ``none`` keeps them
all. ``model`` is what the model was trained with."""


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """``normalize`` scales each vector to length 1. ``dimensions`` asks for shorter vectors, which
    only a model that was trained for it can give."""

    texts: tuple[str, ...]
    id: str = field(default_factory=new_request_id)
    model: str | None = None
    app: str = "default"
    pooling: Pooling = "model"
    normalize: bool = True
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """Of one text: ``data`` are little-endian float32 values, ``dimensions`` for each vector.

    One vector, or with pooling ``none`` one for each of its ``tokens``.
    """

    data: bytes
    dimensions: int
    tokens: int

    @property
    def vectors(self) -> tuple[tuple[float, ...], ...]:
        """All vectors."""
        values = array("f", self.data)
        if sys.byteorder == "big":
            values.byteswap()
        size = self.dimensions
        return tuple(tuple(values[at : at + size]) for at in range(0, len(values), size))

    @property
    def vector(self) -> tuple[float, ...]:
        """The one vector. Raises ``ValueError`` where there is one for each token."""
        (vector,) = self.vectors
        return vector


@dataclass(frozen=True, slots=True)
class EmbedReply:
    """One embedding for each text, in the texts' order; ``model`` names who answered."""

    embeddings: tuple[Embedding, ...]
    model: str
    pooling: Pooling

    @property
    def vectors(self) -> tuple[tuple[float, ...], ...]:
        """One vector for each text; see :attr:`Embedding.vector`."""
        return tuple(embedding.vector for embedding in self.embeddings)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all texts together."""
        return sum(embedding.tokens for embedding in self.embeddings)
