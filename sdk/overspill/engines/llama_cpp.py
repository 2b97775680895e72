"""The llama.cpp backend, over llama-cpp-python's low-level bindings.

Its high-level ``Llama`` runs one sequence at a time; here one context holds ``max_sequences``
of them, and a step is one ``llama_decode``. The file's header is checked first and every NULL
that llama.cpp returns is an error, but a malformed file can still abort the process inside
native code: load strangers' files in a worker.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import llama_cpp as native
import numpy as np

from overspill.engines.backend import Abilities, BatchRow, Interrupted, SavedState, Vocabulary
from overspill.engines.gguf_fit import GgufFitOptions, gguf_fit, is_fused
from overspill.engines.gguf_header import INT32 as GGUF_INT32
from overspill.engines.gguf_header import ArrayInfo, GgufHeader, read_header
from overspill.engines.llama_adapters import NativeAdapters, adapter_bytes
from overspill.engines.llama_backends import start_backends
from overspill.engines.llama_native import AbortFlag, NativeBatch, native_log
from overspill.engines.llama_passes import calls
from overspill.engines.llama_pictures import PictureRows
from overspill.engines.llama_teams import Team
from overspill.engines.loading import on_loaded
from overspill.engines.machine_load import usable_cpus
from overspill.engines.memory import Fit
from overspill.engines.projector_file import projector_bytes
from overspill.errors import DoesNotFit, EngineError, InvalidRequest, ModelInvalid
from overspill.types.card import ModelCard

if TYPE_CHECKING:
    from overspill.engines.backend import Logits
    from overspill.engines.llama_vision import LlamaVision

_ABORTED = 2
_ONE_THREAD_BYTES = 8 << 20
"""Weights that fit a core's share of the cache: for a single token, waiting for a second thread at
each layer costs what its work is worth."""
_GGML_TYPE_F32 = 0


@dataclass(frozen=True, slots=True)
class LlamaCppOptions:
    """``context_tokens`` is per sequence; None takes what the model was trained for, up to 4,096.

    ``threads`` None takes the CPUs that this process may use (one for single tokens of very small
    models). Sequences keep separate KV caches: 8 to 21% faster for unrelated ones than a unified
    cache.
    Flash attention is used where it is faster (``gguf_memory.fuses_attention``).
    ``exact_attention`` keeps the cache in F32 and leaves flash attention out, which rounds to half
    precision (errors of 4e-3 in the logits instead of 2e-6): twice the memory, and the same tokens
    as a reference implementation. ``adapters`` are LoRA files in GGUF, by name. ``shrink_context``
    makes a context that does not fit the memory smaller, and the card says so. ``mmproj`` is the
    projector by which it reads images. ``draft_tokens`` a sequence are checked in one step.
    """

    context_tokens: int | None = None
    max_sequences: int = 4
    batch_tokens: int = 512
    threads: int | None = None
    exact_attention: bool = False
    shrink_context: bool = False
    adapters: Mapping[str, str] = field(default_factory=dict)
    mmproj: Path | None = None
    draft_tokens: int = 0


class LlamaCppBackend:
    """A GGUF file, loaded; see :class:`~overspill.engines.backend.Backend` for what it owes."""

    def __init__(self, path: Path, *, name: str, options: LlamaCppOptions | None = None) -> None:
        options = options or LlamaCppOptions()
        _check_options(options)
        self._closed = False
        self._guard = threading.Lock()
        self._pieces: dict[int, bytes] = {}
        header = read_header(path)
        self._log = native_log()
        wanted = fit_options(options)
        fit = gguf_fit(path, header, name, wanted)
        self._context_tokens = fit.context_tokens
        self._fused = is_fused(path, header, fit.context_tokens, wanted)
        self._model = self._load_model(path)
        try:
            self._vocab = native.llama_model_get_vocab(self._model)
            self._abort = AbortFlag()
            # llama.cpp wants them there before the context is.
            self._adapters = NativeAdapters(self._model, options.adapters)
            self._adapter: str | None = None
            self._single_token_threads = _single_token_threads(options, self._model)
            self._context = self._open_context(options, name)
        except BaseException:
            native.llama_model_free(self._model)
            raise
        self._team = Team()
        self._memory = native.llama_get_memory(self._context)
        self._batch = NativeBatch(options.batch_tokens)
        self._collected: Logits = np.empty((0, 0), np.float32)
        self._options = options
        self._vision: LlamaVision | None = None
        self._pictures = PictureRows(self._context)
        self._vocabulary = _vocabulary(self._vocab, _control_tokens(path, header))
        self._card = _card(name, header, self._model, fit, sees=options.mmproj is not None)
        try:
            self._vision = self._open_vision(options)
            self._abilities = _abilities(options, self._model, self._adapters.names, self._vision)
            self._warm_up()
        except BaseException:
            self.close()
            raise

    @property
    def card(self) -> ModelCard:
        """From the file's header and the loaded model."""
        return self._card

    @property
    def vocabulary(self) -> Vocabulary:
        """As llama.cpp sees it."""
        return self._vocabulary

    @property
    def abilities(self) -> Abilities:
        """Recurrent layers keep no past: their caches cannot be cut."""
        return self._abilities

    @property
    def chat_template(self) -> str | None:
        """``tokenizer.chat_template`` of the file."""
        return _template(self._model, None)

    @property
    def tool_template(self) -> str | None:
        """``tokenizer.chat_template.tool_use`` of the file."""
        return _template(self._model, b"tool_use")

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
        """By the model's own tokenizer, nothing added."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        with self._guard:
            self._check_open()
            while True:
                tokens = (native.llama_token * room)()
                count = native.llama_tokenize(
                    self._vocab, data, len(data), tokens, room, False, special
                )
                if count >= 0:
                    return list(tokens[:count])
                if -count <= room:
                    raise EngineError("llama.cpp cannot tokenize this text.")
                room = -count

    def token_bytes(self, token: int) -> bytes:
        """The token's piece; control tokens show nothing."""
        piece = self._pieces.get(token)
        if piece is None:
            with self._guard:
                self._check_open()
                piece = self._pieces[token] = _piece(self._vocab, token)
        return piece

    def run(self, rows: Sequence[BatchRow]) -> Logits:
        """One ``llama_decode``, or several where pasts differ much (see ``llama_passes``); the
        logits are a view that the next call overwrites.

        Vectors and tokens don't mix in one: pictures come first, one by one.
        """
        if self._vision is not None:
            self._check(self._pictures.run(rows))
            rows = self._pictures.text_rows(rows)
        asking = []
        for call in calls(rows):
            part = [rows[number] for number in call]
            if any(row.wants_logits for row in part):
                asking.append((call, part))
            else:
                self._decode(part)
        if len(asking) < 2:
            return self._logits(sum(self._decode(part) for _, part in asking))
        return self._collect(rows, asking)

    def _decode(self, rows: Sequence[BatchRow]) -> int:
        """Run the rows; returns how many rows of logits there are then."""
        wanted = self._batch.fill(rows)
        if rows:
            self._check(native.llama_decode(self._context, self._batch.native))
        return wanted

    def _check(self, status: int) -> None:
        if status == _ABORTED:
            raise Interrupted
        if status != 0:
            raise EngineError(f"llama.cpp could not run a batch (status {status}{self._said()}).")

    def _collect(
        self,
        rows: Sequence[BatchRow],
        asking: Sequence[tuple[Sequence[int], Sequence[BatchRow]]],
    ) -> Logits:
        """The logits of several calls, in the order of the rows."""
        outputs = [row.outputs if row.wants_logits else 0 for row in rows]
        ends = list(accumulate(outputs))
        total = ends[-1]
        if len(self._collected) < total:
            self._collected = np.empty((total, self._vocabulary.size), np.float32)
        for call, part in asking:
            logits, at = self._logits(self._decode(part)), 0
            for number in call:
                count = outputs[number]
                self._collected[ends[number] - count : ends[number]] = logits[at : at + count]
                at += count
        return self._collected[:total]

    def forget(self, sequence: int, position: int) -> None:
        """Drop from ``position`` on; recurrent models can only forget everything."""
        position = self._pictures.forget(sequence, position)
        if not native.llama_memory_seq_rm(self._memory, sequence, position, -1):
            raise EngineError(f"llama.cpp cannot cut sequence {sequence} at {position}.")

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Separate caches copy whole sequences only: copy, then cut."""
        self.forget(target, 0)
        native.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.forget(target, tokens)

    def save_state(self, sequence: int) -> SavedState:
        """``llama_state_seq_get_data``: 12.6 MB in half a millisecond for 1,000 tokens of 0.5 B."""
        size = native.llama_state_seq_get_size(self._context, sequence)
        data = np.empty(size, np.uint8)
        if native.llama_state_seq_get_data(self._context, _bytes_at(data), size, sequence) != size:
            raise EngineError(f"llama.cpp cannot save sequence {sequence}{self._said()}.")
        return SavedState(data, size)

    def load_state(self, sequence: int, state: SavedState) -> None:
        """``llama_state_seq_set_data``, which replaces what the sequence held."""
        data = state.data
        if not isinstance(data, np.ndarray):
            raise EngineError("llama.cpp: that is no state of its own.")
        if not native.llama_state_seq_set_data(
            self._context, _bytes_at(data), state.size_bytes, sequence
        ):
            raise EngineError(f"llama.cpp cannot load sequence {sequence}{self._said()}.")

    def use_adapter(self, name: str | None) -> None:
        """Adapters belong to the context: all rows of a ``run`` share one."""
        if name != self._adapter:
            self._adapters.use(self._context, name)
            self._adapter = name

    def set_threads(self, threads: int) -> None:
        """For decoding and prefill alike, but for single tokens of very small models."""
        native.llama_set_n_threads(self._context, min(threads, self._single_token_threads), threads)

    def interrupt(self) -> None:
        """llama.cpp looks at the flag between the operations of a batch."""
        self._abort.set()

    def rearm(self) -> None:
        """Take the flag down."""
        self._abort.clear()

    def rest(self) -> None:
        """OpenMP's threads are let go where another model computes in this process."""
        self._team.rest()

    def close(self) -> None:
        """Free batch, context and model."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            if self._vision is not None:
                self._vision.close()
            self._batch.free()
            native.llama_free(self._context)
            native.llama_model_free(self._model)
            self._team.close()

    def _warm_up(self) -> None:
        """Run one token: it reads the weights in, and what breaks the runtime breaks it here."""
        self.run([BatchRow(0, 0, [self._vocabulary.bos_id or 0], wants_logits=True)])
        self.forget(0, 0)

    def _open_vision(self, options: LlamaCppOptions) -> LlamaVision | None:
        if options.mmproj is None:
            return None
        # Not loaded without need: it opens another library.
        from overspill.engines.llama_vision import LlamaVision, VisionOptions

        # Half of the CPUs: the others go on decoding meanwhile, and threads that spin beside
        # threads that spin slow down both.
        threads = options.threads or max(1, usable_cpus() // 2)
        settings = VisionOptions(options.batch_tokens, threads)
        bos_id = self._vocabulary.bos_id
        return LlamaVision(options.mmproj, self._model, bos_id, self._log, settings)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("The model was closed.", mend="Start the engine again.")

    def _load_model(self, path: Path) -> Any:
        start_backends()
        self._log.take()
        params, tell = native.llama_model_default_params(), on_loaded()

        def told(share: float, _: Any) -> bool:
            tell(share)
            return True  # go on

        # Kept in a variable: C holds a pointer to it while it loads.
        callback = native.llama_progress_callback(told)
        params.progress_callback = callback
        model = native.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            self._invalid(f"llama.cpp cannot load {path}")
        if native.llama_model_has_encoder(model) or not native.llama_model_has_decoder(model):
            native.llama_model_free(model)
            self._invalid(f"{path} is not a model that generates text")
        return model

    def _open_context(self, options: LlamaCppOptions, name: str) -> Any:
        params = native.llama_context_default_params()
        params.n_ctx = self._context_tokens * options.max_sequences
        params.n_batch = params.n_ubatch = options.batch_tokens
        params.n_seq_max = options.max_sequences
        params.n_threads_batch = options.threads or usable_cpus()
        params.n_threads = min(params.n_threads_batch, self._single_token_threads)
        if options.exact_attention:
            params.type_k = params.type_v = _GGML_TYPE_F32
        if not self._fused:
            params.flash_attn_type = native.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.kv_unified = False
        params.no_perf = True
        params.abort_callback, params.abort_callback_data = self._abort.callback, self._abort.data
        context = native.llama_init_from_model(self._model, params)
        if not context:
            raise DoesNotFit(
                f"llama.cpp cannot make room for {options.max_sequences} sequences of "
                f"{self._context_tokens} tokens of {name}{self._said()}.",
                mend="Ask for a smaller context or fewer sequences.",
            )
        if not native.llama_get_memory(context):
            native.llama_free(context)
            self._invalid(f"{name} keeps no context: it embeds texts, and generates none")
        return context

    def _logits(self, rows: int) -> Logits:
        size = self._vocabulary.size
        if rows == 0:
            return np.empty((0, size), np.float32)
        pointer = native.llama_get_logits(self._context)
        if not pointer:
            raise EngineError("llama.cpp returned no logits.")
        return np.ctypeslib.as_array(pointer, (rows, size))

    def _said(self) -> str:
        said = self._log.take()
        return f": {said}" if said else ""

    def _invalid(self, what: str) -> NoReturn:
        raise ModelInvalid(
            f"{what}{self._said()}.", mend="Fetch the model again, or use another file."
        )


class _EndTokens(Container[int]):
    """Asks the vocabulary about each sampled token: listing them all takes 0.2 s."""

    def __init__(self, vocab: Any) -> None:
        self._vocab = vocab

    def __contains__(self, token: object) -> bool:
        return bool(native.llama_vocab_is_eog(self._vocab, token))


def _template(model: Any, name: bytes | None) -> str | None:
    template = native.llama_model_chat_template(model, name)
    return None if template is None else template.decode("utf-8", "replace")


def _check_options(options: LlamaCppOptions) -> None:
    limits = (
        ("context_tokens", options.context_tokens, 1 << 24),
        ("max_sequences", options.max_sequences, native.llama_max_parallel_sequences()),
        ("batch_tokens", options.batch_tokens, 1 << 16),
        ("threads", options.threads, 512),
    )
    for name, value, most in limits:
        if value is not None and not 1 <= value <= most:
            raise InvalidRequest(f"{name} is {value}; it goes from 1 to {most}.", param=name)
    if options.batch_tokens < options.max_sequences:
        raise InvalidRequest(
            f"batch_tokens is {options.batch_tokens}; it must hold a token of each of the "
            f"{options.max_sequences} sequences.",
            param="batch_tokens",
        )


def fit_options(options: LlamaCppOptions) -> GgufFitOptions:
    """What the memory estimate wants to know of them. Raises as ``projector_bytes`` does."""
    return GgufFitOptions(
        context_tokens=options.context_tokens,
        max_sequences=options.max_sequences,
        batch_tokens=options.batch_tokens,
        exact_attention=options.exact_attention,
        shrink_context=options.shrink_context,
        projector_bytes=0 if options.mmproj is None else projector_bytes(options.mmproj),
        adapter_bytes=adapter_bytes(options.adapters),
        draft_tokens=options.draft_tokens,
    )


def _abilities(
    options: LlamaCppOptions, model: Any, adapters: tuple[str, ...], vision: LlamaVision | None
) -> Abilities:
    recurrent = native.llama_model_is_recurrent(model) or native.llama_model_is_hybrid(model)
    return Abilities(
        cuts=not recurrent,
        saves_state=True,
        adapters=adapters,
        most_threads=usable_cpus() if options.threads is None else 0,
        vision=vision,
    )


def _control_tokens(path: Path, header: GgufHeader) -> list[int]:
    """From the file's own list of types: asking llama.cpp for each token would take 0.2 s."""
    types = header.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, ArrayInfo) or types.element_type != GGUF_INT32:
        return []
    values = np.fromfile(path, "<i4", types.length, offset=types.offset)
    return [int(token) for token in np.flatnonzero(values == native.LLAMA_TOKEN_TYPE_CONTROL)]


def _vocabulary(vocab: Any, control: list[int]) -> Vocabulary:
    bos, eos = int(native.llama_vocab_bos(vocab)), int(native.llama_vocab_eos(vocab))
    return Vocabulary(
        size=int(native.llama_vocab_n_tokens(vocab)),
        end_ids=_EndTokens(vocab),
        bos_id=bos if native.llama_vocab_get_add_bos(vocab) and bos >= 0 else None,
        bos_text=_text(vocab, bos),
        eos_text=_text(vocab, eos),
        control_texts=tuple(text for text in (_text(vocab, token) for token in control) if text),
    )


def _bytes_at(data: np.ndarray[Any, np.dtype[np.uint8]]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _text(vocab: Any, token: int) -> str:
    return (
        native.llama_vocab_get_text(vocab, token).decode("utf-8", "replace") if token >= 0 else ""
    )


def _piece(vocab: Any, token: int) -> bytes:
    room = 64
    while True:
        buffer = ctypes.create_string_buffer(room)
        size = native.llama_token_to_piece(vocab, token, buffer, room, 0, False)
        if size >= 0:
            return buffer.raw[:size]
        room = -size


def _card(name: str, header: GgufHeader, model: Any, fit: Fit, *, sees: bool) -> ModelCard:
    kind = native.llama_ftype_name(native.llama_model_ftype(model))
    return ModelCard(
        name=name,
        context=fit.context_tokens,
        runtime="llama.cpp",
        quantization=kind.decode() if kind else "unknown",
        parameters=int(native.llama_model_n_params(model)),
        size_bytes=header.file_size,
        memory_bytes=fit.need.total_bytes,
        notes=fit.notes,
        modalities=("text", "image") if sees else ("text",),
    )


def _single_token_threads(options: LlamaCppOptions, model: Any) -> int:
    """What a step of one token takes: as asked for, else all but for the smallest weights."""
    if options.threads is None and native.llama_model_size(model) <= _ONE_THREAD_BYTES:
        return 1
    return options.threads or usable_cpus()
