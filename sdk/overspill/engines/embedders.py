"""Opens an embedder by what it is called, as :mod:`~overspill.engines.registry` does engines."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from overspill.engines.embedder import Embedder, EmbeddingModel, ThreadedEmbedder
from overspill.engines.options import EngineOptions
from overspill.engines.registry import RUNTIMES, name_of, runtime_of
from overspill.errors import MissingExtra


def open_embedder(
    spec: str, *, name: str | None = None, options: EngineOptions | None = None
) -> Embedder:
    """An embedder for ``echo``, a ``.gguf`` file or an MLX folder; ``start`` loads it.

    Raises :class:`ModelNotFound`, :class:`ModelInvalid`, :class:`MissingExtra`.
    """
    options = options or EngineOptions()
    runtime, path = runtime_of(spec)
    name = name or name_of(spec)
    _, extra, modules = RUNTIMES[runtime]
    if any(find_spec(module) is None for module in modules):
        raise MissingExtra(f"The {runtime} runtime", extra)

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

    return ThreadedEmbedder(open_model, name=name, runtime=runtime)


def _open_mlx(path: Path, name: str, options: EngineOptions) -> EmbeddingModel:
    from overspill.engines.mlx_embedding import MlxEmbeddingModel, MlxEmbeddingOptions

    return MlxEmbeddingModel(
        path,
        name=name,
        options=MlxEmbeddingOptions(
            context_tokens=options.context_tokens, shrink_context=options.shrink_context
        ),
    )
