"""Embeddings by llama.cpp, over llama-cpp-python's low-level bindings.

One model and one context at a time, made for a pooling: another pooling makes another context of
the same weights. Texts are sequences of one batch. A text has to fit in one batch whole: models
that attend both ways see all of it at once, and a mean is taken over it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import llama_cpp as native
import numpy as np

from overspill.engines.backend import BatchRow
from overspill.engines.gguf_fit import native_features
from overspill.engines.gguf_header import GgufHeader, read_header
from overspill.engines.gguf_memory import F32_BYTES, LlamaUse, gguf_need
from overspill.engines.llama_backends import start_backends
from overspill.engines.llama_native import AbortFlag, NativeBatch, native_log
from overspill.engines.llama_teams import Team
from overspill.engines.machine_load import usable_cpus
from overspill.engines.memory import F16_BYTES, Fit, MemoryNeed, available_memory, settle
from overspill.errors import (
    DoesNotFit,
    EngineError,
    InvalidRequest,
    ModelInvalid,
    UnsupportedOption,
)
from overspill.types.card import ModelCard
from overspill.types.embedding import Pooling

DEFAULT_CONTEXT_TOKENS = 2048
"""Of one text, where the model was trained for more."""
SHARED_BATCH_TOKENS = 512
"""Of several texts that run together: outputs take the size of the vocabulary for each token."""
MAX_TEXTS = 32

_TYPES: Mapping[Pooling, int] = {
    "mean": native.LLAMA_POOLING_TYPE_MEAN,
    "cls": native.LLAMA_POOLING_TYPE_CLS,
    "last": native.LLAMA_POOLING_TYPE_LAST,
    "none": native.LLAMA_POOLING_TYPE_NONE,
}
_NAMES: Mapping[int, Pooling] = {number: name for name, number in _TYPES.items()}
_ABORTED = 2
_GGML_TYPE_F32 = 0


@dataclass(frozen=True, slots=True)
class LlamaEmbeddingOptions:
    """``context_tokens`` None takes what the model was trained for, up to 2,048.

    ``exact_attention`` keeps F32 where attention would round to half precision: a text's vector
    then agrees to 1e-5 whatever is embedded beside it, otherwise to 1e-3.
    """

    context_tokens: int | None = None
    threads: int | None = None
    exact_attention: bool = False
    shrink_context: bool = False


class LlamaEmbeddingModel:
    """A GGUF file, loaded; see :class:`~overspill.engines.embedder.EmbeddingModel`."""

    def __init__(
        self, path: Path, *, name: str, options: LlamaEmbeddingOptions | None = None
    ) -> None:
        self._options = options or LlamaEmbeddingOptions()
        header = read_header(path)
        self._pooling = _own_pooling(header, name)
        fit = _fit(path, header, name, self._options)
        self._tokens = fit.context_tokens
        self._log = native_log()
        self._abort = AbortFlag()
        self._model: Any = self._load(path)
        self._team = Team()
        self._vocab = native.llama_model_get_vocab(self._model)
        self._dimensions = int(native.llama_model_n_embd_out(self._model))
        self._context: Any = None
        self._made_for: Pooling | None = None
        self._batch = NativeBatch(self._tokens)
        self._card = _card(name, header, self._model, fit)

    @property
    def card(self) -> ModelCard:
        """From the file's header and the loaded model."""
        return self._card

    @property
    def dimensions(self) -> int:
        """Values of one vector."""
        return self._dimensions

    @property
    def pooling(self) -> Pooling | None:
        """What the file says."""
        return self._pooling

    @property
    def batch_tokens(self) -> int:
        """Tokens of texts that run together."""
        return min(self._tokens, SHARED_BATCH_TOKENS)

    @property
    def max_texts(self) -> int:
        """Sequences of a context."""
        return MAX_TEXTS

    def tokenize(self, text: str) -> list[int]:
        """With the tokens that the model wants around a text; what is written in it stays text."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            tokens = (native.llama_token * room)()
            count = native.llama_tokenize(self._vocab, data, len(data), tokens, room, True, False)
            if count >= 0:
                return list(tokens[:count])
            if -count <= room:
                raise EngineError("llama.cpp cannot tokenize this text.")
            room = -count

    def run(
        self, texts: Sequence[Sequence[int]], pooling: Pooling, *, normalize: bool
    ) -> list[bytes]:
        """One batch, each text a sequence."""
        context = self._context_for(pooling)
        memory = native.llama_get_memory(context)
        if memory:
            native.llama_memory_clear(memory, False)
        rows = [
            BatchRow(index, 0, tokens, wants_logits=True, outputs=len(tokens))
            for index, tokens in enumerate(texts)
        ]
        self._batch.fill(rows)
        status = native.llama_decode(context, self._batch.native)
        if status == _ABORTED:
            raise EngineError("The embedder was stopped.")
        if status != 0:
            raise EngineError(f"llama.cpp could not run a batch (status {status}{self._said()}).")
        lengths = [len(tokens) for tokens in texts]
        vectors = [_scaled(v, normalize) for v in self._vectors(context, lengths, pooling)]
        self._team.rest()
        return vectors

    def interrupt(self) -> None:
        """llama.cpp looks at the flag between the operations of a batch."""
        self._abort.set()

    def rearm(self) -> None:
        """Take the flag down."""
        self._abort.clear()

    def close(self) -> None:
        """Free batch, context and model."""
        if self._model is None:
            return
        self._batch.free()
        self._close_context()
        native.llama_model_free(self._model)
        self._model = None
        self._team.close()

    def _vectors(
        self, context: Any, lengths: Sequence[int], pooling: Pooling
    ) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        size, at, found = self._dimensions, 0, []
        for index, length in enumerate(lengths):
            if pooling == "none":
                pointers = [native.llama_get_embeddings_ith(context, at + i) for i in range(length)]
            else:
                pointers = [native.llama_get_embeddings_seq(context, index)]
            if not all(pointers):
                raise EngineError("llama.cpp returned no embeddings.")
            found.append(np.stack([np.ctypeslib.as_array(p, (size,)) for p in pointers]))
            at += length
        return found

    def _context_for(self, pooling: Pooling) -> Any:
        if self._made_for != pooling:
            self._close_context()
            self._context, self._made_for = self._open_context(pooling), pooling
        return self._context

    def _open_context(self, pooling: Pooling) -> Any:
        params = native.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self._tokens
        params.n_seq_max = MAX_TEXTS
        # Texts share the cells: each gets as many as it has tokens.
        params.kv_unified = True
        params.embeddings = True
        params.pooling_type = _TYPES[pooling]
        if self._options.exact_attention:
            params.type_k = params.type_v = _GGML_TYPE_F32
            params.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_threads = params.n_threads_batch = self._options.threads or usable_cpus()
        params.no_perf = True
        params.abort_callback, params.abort_callback_data = self._abort.callback, self._abort.data
        context = native.llama_init_from_model(self._model, params)
        if not context:
            raise DoesNotFit(
                f"llama.cpp cannot make room for texts of {self._tokens} tokens{self._said()}.",
                mend="Ask for a smaller context.",
            )
        return context

    def _close_context(self) -> None:
        if self._context:
            native.llama_free(self._context)
        self._context, self._made_for = None, None

    def _load(self, path: Path) -> Any:
        start_backends()
        self._log.take()
        model = native.llama_model_load_from_file(
            os.fsencode(path), native.llama_model_default_params()
        )
        if not model:
            self._invalid(f"llama.cpp cannot load {path}")
        if native.llama_model_has_encoder(model):
            native.llama_model_free(model)
            self._invalid(f"{path} is an encoder with a decoder, which gives no embeddings here")
        return model

    def _said(self) -> str:
        said = self._log.take()
        return f": {said}" if said else ""

    def _invalid(self, what: str) -> NoReturn:
        raise ModelInvalid(f"{what}{self._said()}.", mend="Use another file.")


def _own_pooling(header: GgufHeader, name: str) -> Pooling | None:
    number = header.metadata.get(f"{header.architecture}.pooling_type")
    if number is None or number == native.LLAMA_POOLING_TYPE_UNSPECIFIED:
        return None
    if number not in _NAMES:
        raise UnsupportedOption(
            f"{name} ranks pairs of texts; it gives no embeddings.",
            param="model",
            mend="Use an embedding model.",
        )
    # A file that says "none" leaves the choice to who asks.
    return None if _NAMES[number] == "none" else _NAMES[number]


def _fit(path: Path, header: GgufHeader, name: str, options: LlamaEmbeddingOptions) -> Fit:
    features = native_features()
    trained = header.metadata.get(f"{header.architecture}.context_length")
    trained = trained if isinstance(trained, int) else DEFAULT_CONTEXT_TOKENS
    wanted = options.context_tokens or min(trained, DEFAULT_CONTEXT_TOKENS)
    if wanted > trained:
        raise InvalidRequest(
            f"context_tokens is {wanted}; {name} was trained for {trained}.",
            param="context_tokens",
            mend="Ask for a smaller context.",
        )

    def need_of(tokens: int) -> MemoryNeed:
        use = LlamaUse(
            context_tokens=tokens,
            max_sequences=1,
            batch_tokens=tokens,
            cpu_features=features,
            cache_bytes_each=F32_BYTES if options.exact_attention else F16_BYTES,
            fused=not options.exact_attention,
            # Each token is an output, with a row of the vocabulary's size beside its vector.
            outputs=tokens,
        )
        return gguf_need(path, header, use)

    return settle(
        need_of,
        name,
        context_tokens=wanted,
        max_sequences=1,
        available_bytes=available_memory(),
        shrink=options.shrink_context,
    )


def _card(name: str, header: GgufHeader, model: Any, fit: Fit) -> ModelCard:
    kind = native.llama_ftype_name(native.llama_model_ftype(model))
    return ModelCard(
        name=name,
        context=fit.context_tokens,
        runtime="llama.cpp",
        quantization=kind.decode() if kind else "unknown",
        parameters=int(native.llama_model_n_params(model)),
        size_bytes=header.file_size,
        modalities=("text", "embedding"),
        memory_bytes=fit.need.total_bytes,
        notes=fit.notes,
    )


def _scaled(vectors: np.ndarray[Any, np.dtype[np.float32]], normalize: bool) -> bytes:
    if normalize:
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = (vectors / np.where(length == 0, 1, length)).astype(np.float32)
    return vectors.astype("<f4").tobytes()
