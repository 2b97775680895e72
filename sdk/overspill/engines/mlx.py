"""The MLX backend, over mlx-lm's models: Apple silicon, and Linux CPUs for tests.

A step is one forward pass for all sequences that write an answer, over mlx-lm's batch caches; the
prompts that are computed beside them run one by one, each in caches of its own. mlx-lm's own
``BatchGenerator`` does the same, but admits, samples and stops by itself: here the scheduler does.
All MLX state lives on the scheduler's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import mlx.core as mx
import numpy as np

from overspill.engines.backend import Abilities, BatchRow, Interrupted, SavedState, Vocabulary
from overspill.engines.mlx_adapters import FolderAdapters
from overspill.engines.mlx_caches import SequenceCaches, by_length, can_cut
from overspill.engines.mlx_memory import PREFILL_TOKENS
from overspill.engines.mlx_model import FolderModel, Wish, weights_bytes
from overspill.engines.mlx_tokenizer import FolderTokenizer
from overspill.errors import EngineError, InvalidRequest
from overspill.types.card import ModelCard

if TYPE_CHECKING:
    from overspill.engines.backend import Logits

Tails: TypeAlias = Mapping[int, Sequence[int]]
"""Sequences, and the tokens whose logits are wanted."""

DEFAULT_CONTEXT_TOKENS = 4096
"""Per sequence, where the model was trained for more."""


@dataclass(frozen=True, slots=True)
class MlxOptions:
    """``context_tokens`` is per sequence; None takes what it was trained for, up to 4,096.

    ``adapters`` are folders of LoRA adapters, by name. With ``shrink_context`` a context that does
    not fit the memory is made smaller, and the card says so. ``kv_bits`` (8 or 4) quantizes the
    caches; mlx-lm cannot batch those, so the sequences take turns, and the card says so too.
    """

    context_tokens: int | None = None
    max_sequences: int = 4
    batch_tokens: int = 512
    shrink_context: bool = False
    adapters: Mapping[str, str] = field(default_factory=dict)
    kv_bits: int | None = None


class MlxBackend:
    """A folder with config.json, safetensors and a tokenizer, loaded."""

    def __init__(self, folder: Path, *, name: str, options: MlxOptions | None = None) -> None:
        self._options = options or MlxOptions()
        if self._options.max_sequences < 1 or self._options.batch_tokens < 1:
            raise InvalidRequest("MLX needs room for one sequence and one token at least.")
        self._loaded = FolderModel(folder)
        if self._options.kv_bits is not None:
            self._loaded.quantize_caches(self._options.kv_bits, name)
        size = self._loaded.outline.vocabulary_size
        fit = self._loaded.fit(_wish(self._options, size), name)
        self._context_tokens = fit.context_tokens
        self._tokenizer = FolderTokenizer(folder, size=size)
        self._loaded.read()
        self._model = self._loaded.module
        self._together = self._options.max_sequences > 1 and self._loaded.steps_together()
        self._token_bytes = self._loaded.outline.padded_token_bytes
        self._pass_bytes = self._loaded.outline.weights_bytes
        self._steps = 0
        self._adapters = FolderAdapters(self._model, self._options.adapters)
        self._abilities = Abilities(
            cuts=can_cut(self._loaded.new_caches()),
            saves_state=True,
            adapters=self._adapters.names,
        )
        self._caches = SequenceCaches(self._loaded.new_caches)
        self._interrupted = threading.Event()
        card = self._loaded.card(fit, name)
        self._card = replace(card, notes=card.notes + self._odd())

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
    def tool_template(self) -> str | None:
        """The tokenizer's."""
        return self._tokenizer.tool_template

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
        """As the options say, with room for a token of each sequence."""
        return max(self._options.batch_tokens, self._options.max_sequences)

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """By the folder's tokenizer, nothing added."""
        return self._tokenizer.encode(text, special=special)

    def token_bytes(self, token: int) -> bytes:
        """By the folder's tokenizer."""
        return self._tokenizer.token_bytes(token)

    def run(self, rows: Sequence[BatchRow]) -> Logits:
        """Prompts one by one, but for their last tokens; then all whose logits are wanted at once.

        Logits take a row of the vocabulary's size for each token, so none are computed for
        the rest of a prompt.
        """
        tails: dict[int, Sequence[int]] = {}
        for row in rows:
            self._check_position(row)
            tail = row.outputs if row.wants_logits else 0
            head = len(row.tokens) - tail
            if head:
                self._compute(row.sequence, row.tokens[:head])
            if tail:
                tails[row.sequence] = row.tokens[head:]
        return self._logits(tails)

    def forget(self, sequence: int, position: int) -> None:
        """Trim the caches; those that can't be trimmed can only be dropped whole."""
        self._caches.forget(sequence, position)

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Copy the whole cache, then cut."""
        self._caches.copy_prefix(source, target, tokens)

    def save_state(self, sequence: int) -> SavedState:
        """A copy of the caches' arrays."""
        return self._caches.save(sequence)

    def load_state(self, sequence: int, state: SavedState) -> None:
        """A copy again: the saved one may be loaded more than once."""
        self._caches.load(sequence, state.data)

    def use_adapter(self, name: str | None) -> None:
        """All rows of a ``run`` share one."""
        self._adapters.use(name)

    def set_threads(self, threads: int) -> None:
        """MLX chooses by itself."""

    def interrupt(self) -> None:
        """Seen between two forward passes."""
        self._interrupted.set()

    def rearm(self) -> None:
        """Go on with the next pass."""
        self._interrupted.clear()

    def close(self) -> None:
        """Drop model and caches."""
        self._caches.clear()
        self._adapters.close()
        self._model = None
        self._loaded.close()

    def _check_position(self, row: BatchRow) -> None:
        held = self._caches.held(row.sequence)
        if held != row.position:
            raise EngineError(f"MLX: sequence {row.sequence} holds {held} tokens.")

    def _compute(self, sequence: int, tokens: Sequence[int]) -> None:
        """Part of a prompt, of which no logits are wanted."""
        caches = self._caches.alone(sequence)
        for at in range(0, len(tokens), PREFILL_TOKENS):
            chunk = list(tokens[at : at + PREFILL_TOKENS])
            with self._pass():
                self._model(mx.array([chunk]), cache=caches)
                mx.eval([cache.state for cache in caches])
            # MLX keeps freed buffers for the next of their size; a prompt's are of many sizes.
            mx.clear_cache()
            self._caches.appended({sequence: len(chunk)})

    def _logits(self, tails: Tails) -> Logits:
        """The logits of every token, in order."""
        self._caches.sweep()
        found: list[Any] = []
        starts: dict[int, int] = {}
        rows = 0
        for part in self._parts(tails):
            logits, first = self._step({sequence: tails[sequence] for sequence in part})
            starts |= {sequence: rows + row for sequence, row in first.items()}
            found.append(logits)
            rows += len(logits)
        if not found:
            return np.empty((0, self.vocabulary.size), np.float32)
        logits = found[0] if len(found) == 1 else mx.concatenate(found)
        wanted = [starts[s] + i for s, tail in tails.items() for i in range(len(tail))]
        if wanted != list(range(rows)):
            logits = logits[mx.array(wanted)]
        return np.array(logits.astype(mx.float32))

    def _parts(self, tails: Tails) -> list[list[int]]:
        if not self._together:
            return [[sequence] for sequence in tails]
        lengths = {sequence: self._caches.held(sequence) for sequence in tails}
        return by_length(lengths, token_bytes=self._token_bytes, pass_bytes=self._pass_bytes)

    def _step(self, tails: Tails) -> tuple[Any, dict[int, int]]:
        """One pass: a row of logits for each token, and each sequence's first row.

        Tails of unequal length are padded on the right; what is padding shows to nobody.
        """
        with self._pass():
            batch = self._caches.together(list(tails)) if len(tails) > 1 else None
            if batch is None:
                members = list(tails)
                caches = self._caches.alone(members[0])
            else:
                members, caches = batch.living, batch.caches
            width = max(len(tail) for tail in tails.values())
            inputs = [[*tails[m], *[0] * (width - len(tails[m]))] for m in members]
            logits = self._model(mx.array(inputs), cache=caches).flatten(0, 1)
            mx.eval(logits, [cache.state for cache in caches])
        self._caches.appended({s: len(tail) for s, tail in tails.items()}, batch)
        self._count_step()
        return logits, {member: row * width for row, member in enumerate(members)}

    def _count_step(self) -> None:
        # As mlx-lm does: buffers of sizes that nobody needs any more pile up on Metal.
        self._steps += 1
        if self._steps % 256 == 0:
            mx.clear_cache()

    @contextmanager
    def _pass(self) -> Iterator[None]:
        """A forward pass: what is between two of them can be interrupted."""
        if self._interrupted.is_set():
            raise Interrupted
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            # mlx raises RuntimeError and ValueError, models whatever they stumble over.
            line = " ".join(f"{error}".split())[:300]
            raise EngineError(f"MLX could not run a batch: {line}.") from error

    def _odd(self) -> tuple[str, ...]:
        if self._together or self._options.max_sequences == 1:
            return ()
        what = "this architecture" if self._options.kv_bits is None else "quantized caches"
        return (f"mlx-lm cannot batch {what}: sequences take turns",)


def _wish(options: MlxOptions, vocabulary_size: int) -> Wish:
    return Wish(
        options.context_tokens,
        DEFAULT_CONTEXT_TOKENS,
        options.max_sequences,
        outputs_each=vocabulary_size,
        adapter_bytes=sum(weights_bytes(Path(folder)) for folder in options.adapters.values()),
        shrink_context=options.shrink_context,
    )
