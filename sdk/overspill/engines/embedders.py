"""Opens an embedder by what it is called, as :mod:`~overspill.engines.registry` does engines."""

from __future__ import annotations

from importlib.util import find_spec

from overspill.engines.embedder import Embedder, EmbeddingModel, ThreadedEmbedder
from overspill.engines.options import EngineOptions
from overspill.engines.registry import name_of, runtime_of
from overspill.errors import MissingExtra, UnsupportedOption


def open_embedder(
    spec: str, *, name: str | None = None, options: EngineOptions | None = None
) -> Embedder:
    """An embedder for ``echo`` or a ``.gguf`` file; ``start`` loads it.

    Raises :class:`ModelNotFound`, :class:`ModelInvalid`, :class:`MissingExtra`, and
    :class:`UnsupportedOption` for an MLX folder: mlx-lm's models give no embeddings.
    """
    options = options or EngineOptions()
    runtime, path = runtime_of(spec)
    name = name or name_of(spec)
    if runtime == "mlx":
        raise UnsupportedOption(
            f"{name} is in the MLX layout; embeddings run on llama.cpp only.",
            param="model",
            mend="Use the same model as a .gguf file.",
        )
    if runtime == "llama.cpp" and any(find_spec(m) is None for m in ("llama_cpp", "numpy")):
        raise MissingExtra("The llama.cpp runtime", "llama")

    def open_model() -> EmbeddingModel:
        if runtime == "echo":
            from overspill.engines.echo_embedding import DEFAULT_CONTEXT_TOKENS, EchoEmbeddingModel

            return EchoEmbeddingModel(
                name, context_tokens=options.context_tokens or DEFAULT_CONTEXT_TOKENS
            )
        from overspill.engines.llama_embedding import LlamaEmbeddingModel, LlamaEmbeddingOptions

        native = LlamaEmbeddingOptions(
            context_tokens=options.context_tokens,
            threads=options.threads,
            exact_attention=options.exact_attention,
            shrink_context=options.shrink_context,
        )
        return LlamaEmbeddingModel(path, name=name, options=native)

    return ThreadedEmbedder(open_model, name=name, runtime=runtime)
