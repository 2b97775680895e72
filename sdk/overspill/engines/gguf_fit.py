"""Decides, before a GGUF file is loaded, with which context it fits; or refuses it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from overspill.engines.gguf_header import GgufHeader, read_header
from overspill.engines.gguf_memory import (
    F32_BYTES,
    LlamaUse,
    cpu_features,
    fuses_attention,
    gguf_need,
)
from overspill.engines.memory import F16_BYTES, Fit, MemoryNeed, available_memory, settle
from overspill.errors import InvalidRequest

DEFAULT_CONTEXT_TOKENS = 4096
"""Per sequence, where the model was trained for more."""


@dataclass(frozen=True, slots=True)
class GgufFitOptions:
    """What of a backend's options its memory depends on; see ``LlamaCppOptions``.

    ``projector_bytes`` and ``adapter_bytes`` are the weights that lie beside the model's.
    ``draft_tokens`` of each sequence are checked in one step: each takes a row of output.
    """

    context_tokens: int | None = None
    max_sequences: int = 4
    batch_tokens: int = 512
    exact_attention: bool = False
    shrink_context: bool = False
    projector_bytes: int = 0
    adapter_bytes: int = 0
    draft_tokens: int = 0


def gguf_fit(
    path: Path,
    header: GgufHeader,
    name: str,
    options: GgufFitOptions,
    *,
    available_bytes: int | None = None,
) -> Fit:
    """The context that it gets, and what it takes with it; ``available_bytes`` None asks.

    Raises ``DoesNotFit`` with the arithmetic, ``InvalidRequest`` for a context that the model was
    not trained for.
    """
    features = native_features()

    def need_of(context_tokens: int) -> MemoryNeed:
        use = LlamaUse(
            context_tokens=context_tokens,
            max_sequences=options.max_sequences,
            batch_tokens=options.batch_tokens,
            cpu_features=features,
            cache_bytes_each=F32_BYTES if options.exact_attention else F16_BYTES,
            fused=is_fused(path, header, context_tokens, options),
            draft_tokens=options.draft_tokens,
        )
        need = gguf_need(path, header, use)
        beside_bytes = options.projector_bytes + options.adapter_bytes
        return replace(need, weights_bytes=need.weights_bytes + beside_bytes)

    return settle(
        need_of,
        name,
        context_tokens=_wanted_context(header, name, options.context_tokens),
        max_sequences=options.max_sequences,
        available_bytes=available_memory() if available_bytes is None else available_bytes,
        shrink=options.shrink_context,
    )


def is_fused(path: Path, header: GgufHeader, context_tokens: int, options: GgufFitOptions) -> bool:
    """Whether this context computes attention in one operation, which may round to half
    precision; see :func:`~overspill.engines.gguf_memory.fuses_attention`."""
    features = native_features()
    return not options.exact_attention and fuses_attention(
        path, header, context_tokens, options.batch_tokens, features
    )


def file_fit(path: Path, name: str, options: GgufFitOptions) -> Fit:
    """As :func:`gguf_fit`, for a file that nobody has opened yet."""
    return gguf_fit(path, read_header(path), name, options)


def native_features() -> frozenset[str]:
    """What the installed llama.cpp can do on this CPU; nothing where it isn't installed.

    Where layers go to a GPU they are not repacked.
    """
    if find_spec("llama_cpp") is None:
        return frozenset()
    import llama_cpp

    if llama_cpp.llama_supports_gpu_offload():
        return frozenset()
    return cpu_features(llama_cpp.llama_print_system_info().decode("utf-8", "replace"))


def _wanted_context(header: GgufHeader, name: str, asked: int | None) -> int:
    trained = header.metadata.get(f"{header.architecture}.context_length")
    if not isinstance(trained, int):
        return asked or DEFAULT_CONTEXT_TOKENS
    if asked is None:
        return min(trained, DEFAULT_CONTEXT_TOKENS)
    if asked > trained:
        raise InvalidRequest(
            f"context_tokens is {asked}; {name} was trained for {trained}.",
            param="context_tokens",
            mend="Ask for a smaller context.",
        )
    return asked
