"""Embeddings by MLX: the hidden states behind the last layer of mlx-lm's models.

mlx-lm has models that generate, and no encoders such as BERT: what embeds here are decoders, as
Qwen3-Embedding and E5-Mistral are. They look back only, so texts of one batch are padded on the
right and don't see it. A long text runs alone, in chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from overspill.engines.mlx_memory import PREFILL_TOKENS
from overspill.engines.mlx_model import FolderModel, Wish
from overspill.engines.mlx_tokenizer import FolderTokenizer, read_json
from overspill.errors import EngineError, UnsupportedOption
from overspill.types.card import ModelCard
from overspill.types.embedding import Pooling

DEFAULT_CONTEXT_TOKENS = 2048
"""Of one text, where the model was trained for more."""
SHARED_BATCH_TOKENS = 512
MAX_TEXTS = 32

_BODIES = ("model", "language_model.model", "backbone", "transformer")
"""What mlx-lm's classes call all of a model but its output layer."""
_OWN: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True, slots=True)
class MlxEmbeddingOptions:
    """``context_tokens`` None takes what the model was trained for, up to 2,048."""

    context_tokens: int | None = None
    shrink_context: bool = False


class MlxEmbeddingModel:
    """A folder, loaded; see :class:`~overspill.engines.embedder.EmbeddingModel`.

    Raises :class:`UnsupportedOption` for models whose vectors need more than mlx-lm computes.
    """

    def __init__(
        self, folder: Path, *, name: str, options: MlxEmbeddingOptions | None = None
    ) -> None:
        options = options or MlxEmbeddingOptions()
        self._loaded = FolderModel(folder)
        _check_kind(folder, self._loaded.config, name)
        self._pooling = _own_pooling(folder)
        self._body = _body(self._loaded, name)
        self._dimensions = int(self._body(mx.array([[0]])).shape[-1])
        fit = self._loaded.fit(_wish(options, self._dimensions), name)
        self._tokenizer = FolderTokenizer(folder, size=self._loaded.outline.vocabulary_size)
        # Its output layer is never asked for, and so never read.
        self._loaded.read(self._body)
        self._stopped = threading.Event()
        self._card = replace(self._loaded.card(fit, name), modalities=("text", "embedding"))

    @property
    def card(self) -> ModelCard:
        """From the folder."""
        return self._card

    @property
    def dimensions(self) -> int:
        """Values of one vector."""
        return self._dimensions

    @property
    def pooling(self) -> Pooling | None:
        """What ``1_Pooling/config.json`` says, as sentence-transformers writes it."""
        return self._pooling

    @property
    def batch_tokens(self) -> int:
        """Tokens of texts that run together."""
        return min(self._card.context, SHARED_BATCH_TOKENS)

    @property
    def max_texts(self) -> int:
        """Texts of one pass."""
        return MAX_TEXTS

    def tokenize(self, text: str) -> list[int]:
        """With the tokens that the model wants around a text; what is written in it stays text."""
        return self._tokenizer.wrapped(text)

    def run(
        self, texts: Sequence[Sequence[int]], pooling: Pooling, *, normalize: bool
    ) -> list[bytes]:
        """One pass, or chunk by chunk where it is one text."""
        try:
            states = self._alone(texts[0]) if len(texts) == 1 else self._together(texts)
            return [
                _pooled(mine[: len(text)], pooling, normalize)
                for mine, text in zip(states, texts, strict=True)
            ]
        except (RuntimeError, ValueError) as error:
            line = " ".join(f"{error}".split())[:300]
            raise EngineError(f"MLX could not embed: {line}.") from error

    def interrupt(self) -> None:
        """Seen between two passes."""
        self._stopped.set()

    def rearm(self) -> None:
        """Go on."""
        self._stopped.clear()

    def close(self) -> None:
        """Drop the model."""
        self._body = None
        self._loaded.close()

    def _together(self, texts: Sequence[Sequence[int]]) -> Any:
        width = max(len(text) for text in texts)
        rows = [[*text, *[0] * (width - len(text))] for text in texts]
        return self._computed(self._body(mx.array(rows)))

    def _alone(self, text: Sequence[int]) -> Any:
        caches = self._loaded.new_caches()
        parts = [self._computed(self._body(mx.array([part]), caches)) for part in _chunks(text)]
        return np.concatenate(parts, axis=1)

    def _computed(self, states: Any) -> Any:
        if self._stopped.is_set():
            raise EngineError("The embedder was stopped.")
        computed = np.array(states.astype(mx.float32))
        mx.clear_cache()
        return computed


def _wish(options: MlxEmbeddingOptions, dimensions: int) -> Wish:
    return Wish(
        options.context_tokens,
        DEFAULT_CONTEXT_TOKENS,
        max_sequences=1,
        # Of each token there is a vector.
        outputs_each=SHARED_BATCH_TOKENS * dimensions,
        shrink_context=options.shrink_context,
    )


def _chunks(text: Sequence[int]) -> Iterator[list[int]]:
    for at in range(0, len(text), PREFILL_TOKENS):
        yield list(text[at : at + PREFILL_TOKENS])


def _pooled(states: Any, pooling: Pooling, normalize: bool) -> bytes:
    """``states``: a vector for each token."""
    if pooling == "mean":
        states = states.mean(axis=0, keepdims=True)
    elif pooling != "none":
        states = states[:1] if pooling == "cls" else states[-1:]
    if normalize:
        length = np.linalg.norm(states, axis=1, keepdims=True)
        states = states / np.where(length == 0, 1, length)
    return bytes(states.astype("<f4").tobytes())


def _body(loaded: FolderModel, name: str) -> Any:
    """All of the model but its output layer."""
    for path in _BODIES:
        part: Any = loaded.module
        for step in path.split("."):
            part = getattr(part, step, None)
        if callable(part):
            return part
    raise UnsupportedOption(
        f"mlx-lm's code of {name} gives no hidden states.",
        param="model",
        mend="Use the same model as a .gguf file.",
    )


def _check_kind(folder: Path, config: Mapping[str, Any], name: str) -> None:
    """Refuse what mlx-lm would compute as another model: its vectors would be wrong."""
    text = config.get("text_config") or config
    both_ways = bool(text.get("use_bidirectional_attention")) or text.get("is_causal") is False
    if both_ways or any(folder.glob("*_Dense")):
        what = "attends both ways" if both_ways else "has layers behind its pooling"
        raise UnsupportedOption(
            f"{name} {what}, which mlx-lm does not compute.",
            param="model",
            mend="Use the same model as a .gguf file.",
        )


def _own_pooling(folder: Path) -> Pooling | None:
    modes = read_json(folder / "1_Pooling" / "config.json", required=False)
    named = [pooling for key, pooling in _OWN.items() if modes.get(key)]
    return named[0] if len(named) == 1 else None
