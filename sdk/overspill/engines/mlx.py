"""The MLX backend, over mlx-lm's models: Apple silicon, and Linux CPUs for tests.

Each sequence has a KV cache of its own and is stepped by itself: right, and as fast as one
stream goes, but a batch gains nothing yet. All MLX state lives on the scheduler's thread.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from overspill.engines.backend import Abilities, BatchRow, Interrupted, SavedState, Vocabulary
from overspill.engines.memory import (
    F16_BYTES,
    Fit,
    available_memory,
    config_kv_shape,
    memory_need,
    settle,
)
from overspill.engines.mlx_adapters import FolderAdapters
from overspill.engines.mlx_tokenizer import FolderTokenizer, read_json
from overspill.errors import EngineError, InvalidRequest, ModelInvalid
from overspill.types.card import ModelCard

if TYPE_CHECKING:
    from overspill.engines.backend import Logits

DEFAULT_CONTEXT_TOKENS = 4096
"""Per sequence, where the model was trained for more."""


@dataclass(frozen=True, slots=True)
class MlxOptions:
    """``context_tokens`` is per sequence; None takes what it was trained for, up to 4,096.

    ``adapters`` are folders of LoRA adapters, by name. With ``shrink_context`` a context that does
    not fit the memory is made smaller, and the card says so.
    """

    context_tokens: int | None = None
    max_sequences: int = 4
    batch_tokens: int = 512
    shrink_context: bool = False
    adapters: Mapping[str, str] = field(default_factory=dict)


class MlxBackend:
    """A folder with config.json, safetensors and a tokenizer, loaded."""

    def __init__(self, folder: Path, *, name: str, options: MlxOptions | None = None) -> None:
        self._options = options or MlxOptions()
        if self._options.max_sequences < 1 or self._options.batch_tokens < 1:
            raise InvalidRequest("MLX needs room for one sequence and one token at least.")
        config = read_json(folder / "config.json")
        fit = _fit(self._options, config, folder, name)
        self._context_tokens = fit.context_tokens
        self._model, self._new_caches = _load(folder)
        self._tokenizer = FolderTokenizer(folder, size=self._count_logits())
        self._adapters = FolderAdapters(self._model, self._options.adapters)
        self._abilities = Abilities(
            # A rolling cache can be cut until it is full, which is too late to find out.
            cuts=all(c.is_trimmable() and not hasattr(c, "max_size") for c in self._new_caches()),
            saves_state=True,
            adapters=self._adapters.names,
        )
        self._caches: dict[int, Any] = {}
        self._lengths: dict[int, int] = {}
        self._interrupted = threading.Event()
        self._card = self._describe(name, folder, config, fit)

    @property
    def card(self) -> ModelCard:
        """From the folder and the loaded weights."""
        return self._card

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer's."""
        return self._tokenizer.vocabulary

    @property
    def abilities(self) -> Abilities:
        """Rolling and recurrent caches cannot be cut; MLX chooses its threads by itself."""
        return self._abilities

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's."""
        return self._tokenizer.chat_template

    @property
    def max_sequences(self) -> int:
        """As the options say."""
        return self._options.max_sequences

    @property
    def context_per_sequence(self) -> int:
        """As asked for, or by default."""
        return self._context_tokens

    @property
    def kv_tokens(self) -> int:
        """Each sequence has a cache of its own."""
        return self._context_tokens * self._options.max_sequences

    @property
    def batch_tokens(self) -> int:
        """As the options say."""
        return self._options.batch_tokens

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """By the folder's tokenizer, nothing added."""
        return self._tokenizer.encode(text, special=special)

    def token_bytes(self, token: int) -> bytes:
        """By the folder's tokenizer."""
        return self._tokenizer.token_bytes(token)

    def run(self, rows: Sequence[BatchRow]) -> Logits:
        """Step each sequence in turn."""
        logits = [self._step(row) for row in rows]
        wanted = [row for row in logits if row is not None]
        return np.concatenate(wanted) if wanted else np.empty((0, self.vocabulary.size), np.float32)

    def forget(self, sequence: int, position: int) -> None:
        """Trim the caches; those that can't be trimmed can only be dropped whole."""
        if position == 0:
            self._caches.pop(sequence, None)
            self._lengths.pop(sequence, None)
            return
        surplus = self._lengths.get(sequence, 0) - position
        if surplus <= 0:
            return
        for cache in self._caches[sequence]:
            if not cache.is_trimmable() or cache.trim(surplus) != surplus:
                raise EngineError(f"MLX cannot cut this model's cache at {position}.")
        self._lengths[sequence] = position

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Copy the whole cache, then cut."""
        self._caches[target] = copy.deepcopy(self._caches[source])
        self._lengths[target] = self._lengths[source]
        self.forget(target, tokens)

    def save_state(self, sequence: int) -> SavedState:
        """A copy of the caches' arrays."""
        caches = copy.deepcopy(self._caches[sequence])
        size = sum(cache.nbytes for cache in caches)
        return SavedState((caches, self._lengths[sequence]), size)

    def load_state(self, sequence: int, state: SavedState) -> None:
        """A copy again: the saved one may be loaded more than once."""
        if not isinstance(state.data, tuple):
            raise EngineError("MLX: that is no state of its own.")
        caches, self._lengths[sequence] = state.data
        self._caches[sequence] = copy.deepcopy(caches)

    def use_adapter(self, name: str | None) -> None:
        """All rows of a ``run`` share one."""
        self._adapters.use(name)

    def set_threads(self, threads: int) -> None:
        """MLX chooses by itself."""

    def interrupt(self) -> None:
        """Seen between two rows."""
        self._interrupted.set()

    def rearm(self) -> None:
        """Go on with the next row."""
        self._interrupted.clear()

    def close(self) -> None:
        """Drop model and caches."""
        self._caches.clear()
        self._model = None

    def _step(self, row: BatchRow) -> Logits | None:
        if self._interrupted.is_set():
            raise Interrupted
        held = self._lengths.get(row.sequence, 0)
        if held != row.position:
            raise EngineError(f"MLX: sequence {row.sequence} holds {held} tokens.")
        caches = self._caches.get(row.sequence)
        if caches is None:
            caches = self._caches[row.sequence] = self._new_caches()
        output = self._model(mx.array([list(row.tokens)]), cache=caches)
        self._lengths[row.sequence] = held + len(row.tokens)
        if not row.wants_logits:
            mx.eval([cache.state for cache in caches])
            return None
        return np.array(output[0, -row.outputs :].astype(mx.float32))

    def _count_logits(self) -> int:
        return int(self._model(mx.array([[0]])).shape[-1])

    def _describe(self, name: str, folder: Path, config: dict[str, Any], fit: Fit) -> ModelCard:
        from mlx.utils import tree_flatten

        weights: list[Any] = list(dict(tree_flatten(self._model.parameters())).values())
        quantization = config.get("quantization") or {}
        kind = f"{quantization['bits']}-bit" if "bits" in quantization else _dtype(weights)
        return ModelCard(
            name=name,
            context=self._context_tokens,
            runtime="mlx",
            quantization=kind,
            parameters=0 if quantization else sum(array.size for array in weights),
            size_bytes=_weights_bytes(folder),
            memory_bytes=fit.need.total_bytes,
            notes=fit.notes,
        )


def _fit(options: MlxOptions, config: dict[str, Any], folder: Path, name: str) -> Fit:
    """Weights and caches; raises ``DoesNotFit`` before anything is loaded."""
    kind = str(config.get("torch_dtype") or config.get("dtype") or "")
    kv = config_kv_shape(config, bytes_each=4 if kind == "float32" else F16_BYTES)
    weights = _weights_bytes(folder)
    return settle(
        lambda tokens: memory_need(
            weights, kv, context_tokens=tokens, max_sequences=options.max_sequences
        ),
        name,
        context_tokens=_context_tokens(options, config, name),
        max_sequences=options.max_sequences,
        available_bytes=available_memory(),
        shrink=options.shrink_context,
    )


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _load(folder: Path) -> tuple[Any, Any]:
    with _open_file_limit_kept():
        from mlx_lm.models.cache import make_prompt_cache
        from mlx_lm.utils import load_model
    try:
        model, _ = load_model(folder)
    except Exception as error:
        # mlx and mlx-lm raise whatever a stranger's file makes them stumble over.
        line = " ".join(f"{error}".split())[:300]
        raise ModelInvalid(
            f"MLX cannot load {folder}: {line}.", mend="Fetch the model again, or use another."
        ) from error
    return model, lambda: make_prompt_cache(model)


@contextmanager
def _open_file_limit_kept() -> Iterator[None]:
    """mlx-lm sets the process's limits of open files when it is imported; put the soft one back."""
    if sys.platform == "win32":
        yield
        return
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # A lowered hard limit can't be raised again: as much as there is.
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard), hard))


def _context_tokens(options: MlxOptions, config: dict[str, Any], name: str) -> int:
    text = config.get("text_config") or config
    trained = text.get("max_position_embeddings")
    if not isinstance(trained, int) or trained < 1:
        trained = DEFAULT_CONTEXT_TOKENS
    if options.context_tokens is None:
        return min(trained, DEFAULT_CONTEXT_TOKENS)
    if not 1 <= options.context_tokens <= trained:
        raise InvalidRequest(
            f"context_tokens is {options.context_tokens}; {name} was trained for {trained}.",
            param="context_tokens",
            mend="Ask for a smaller context.",
        )
    return options.context_tokens


def _dtype(weights: list[Any]) -> str:
    largest = max(weights, key=lambda array: array.size)
    return str(largest.dtype).rpartition(".")[2]
