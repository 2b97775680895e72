"""Opens an embedder by what it is called, as :mod:`~overspill.engines.registry` does engines."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from overspill.engines.embedder import Embedder, EmbeddingModel, ThreadedEmbedder
from overspill.engines.options import EngineOptions
from overspill.engines.registry import (
    ATTENDS_AS_WEIGHTS,
    CHOOSES_THREADS,
    RUNTIMES,
    name_of,
    refuse_unread,
    runtime_of,
)
from overspill.errors import MissingExtra

_GENERATING = dict.fromkeys(
    ("adapters", "draft_model", "mmproj", "kv_bits"),
    ("embeds texts here and generates none", "Leave it out."),
)
_UNREAD = {"mlx": {"threads": CHOOSES_THREADS, "exact_attention": ATTENDS_AS_WEIGHTS}}
"""By runtime, as the registry's ``UNREAD``."""


def open_embedder(
    spec: str, *, name: str | None = None, options: EngineOptions | None = None
) -> Embedder:
    """An embedder for ``echo``, a ``.gguf`` file or an MLX folder; ``start`` loads it.

    Raises :class:`ModelNotFound`, :class:`ModelInvalid`, :class:`MissingExtra`, and
    :class:`UnsupportedOption` for what only an engine that generates heeds, or another runtime.
    """
    options = options or EngineOptions()
    runtime, path = runtime_of(spec)
    name = name or name_of(spec)
    _, extra, modules = RUNTIMES[runtime]
    if any(find_spec(module) is None for module in modules):
        raise MissingExtra(f"The {runtime} runtime", extra)
    refuse_unread(name, runtime, options, {**_GENERATING, **_UNREAD.get(runtime, {})})

    def open_model() -> EmbeddingModel:
        if runtime == "echo":
            from overspill.engines.echo_embedding import DEFAULT_CONTEXT_TOKENS, EchoEmbeddingModel

            return EchoEmbeddingModel(
                name, context_tokens=options.context_tokens or DEFAULT_CONTEXT_TOKENS
            )
        if runtime == "mlx":
            return _open_mlx(path, name, options)
        from overspill.engines.llama_embedding import LlamaEmbeddingModel, LlamaEmbeddingOptions

        native = LlamaEmbeddingOptions(
            context_tokens=options.context_tokens,
            threads=options.threads,
            exact_attention=options.exact_attention,
            shrink_context=options.shrink_context,
        )
        return LlamaEmbeddingModel(path, name=name, options=native)

    return ThreadedEmbedder(
        open_model,
        name=name,
        runtime=runtime,
        stall_after_s=options.scheduler.stall_after_s,
    )


def _open_mlx(path: Path, name: str, options: EngineOptions) -> EmbeddingModel:
    from overspill.engines.mlx_embedding import MlxEmbeddingModel, MlxEmbeddingOptions

    return MlxEmbeddingModel(
        path,
        name=name,
        options=MlxEmbeddingOptions(
            context_tokens=options.context_tokens, shrink_context=options.shrink_context
        ),
    )
