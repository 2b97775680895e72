"""Models that embed: a BERT and decoders with random weights, and one without weights."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from overspill.engines.embedders import open_embedder
from overspill.engines.options import EngineOptions
from overspill.types.embedding import EmbedRequest

REPOSITORY = Path(__file__).resolve().parents[2]
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

KINDS = ["echo", "bert", "decoder", "mlx", "worker-echo", "worker-bert", "worker-mlx"]


@pytest.fixture(scope="session")
def embedding_file(made_gguf, tmp_path_factory):
    """``embedding_file("bert")``, or ``("decoder", pooling=3)``: a file, written once."""
    folder = tmp_path_factory.mktemp("embedding")
    shapes = {
        "bert": made_gguf.Shape(
            "bert", width=64, heads=4, kv_heads=4, feed_forward=128, vocabulary=700, context=256,
            extra={"attention.causal": False, "pooling_type": 1},
        ),
        "decoder": made_gguf.Shape(
            "llama", width=64, heads=4, kv_heads=2, feed_forward=128, vocabulary=600, context=256,
            extra={"pooling_type": 3},
        ),
        "plain": made_gguf.Shape("llama", width=64, heads=4, kv_heads=2, vocabulary=600),
    }  # fmt: skip

    def find(kind, **extra):
        shape = shapes[kind]
        shape = replace(shape, extra={**shape.extra, **extra})
        name = "-".join((kind, *(f"{key}{value}" for key, value in extra.items())))
        path = folder / f"{name}.gguf"
        return path if path.exists() else made_gguf.write(path, shape)

    return find


@pytest.fixture(scope="session")
def embedding_folder(tmp_path_factory):
    """A decoder in the MLX layout, which says that its last token's vector stands for a text."""
    if find_spec("mlx_lm") is None:
        pytest.skip("mlx is not installed; pip install 'overspill[mlx]'")
    from tests import made_mlx

    tokenizer = REPOSITORY / "examples" / "family" / "models" / "tokenizer.json"
    folder = made_mlx.write("llama", tmp_path_factory.mktemp("mlx") / "made", tokenizer)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    return folder


@pytest.fixture(scope="session")
def open_kind(embedding_file, request):
    """``open_kind("worker-bert")``: an embedder, not yet started; skips when not installed."""

    def find(model):
        if model == "echo":
            return model
        if model == "mlx":
            return request.getfixturevalue("embedding_folder")
        if find_spec("llama_cpp") is None:
            pytest.skip("llama.cpp is not installed; pip install 'overspill[llama]'")
        return embedding_file(model)

    def build(kind, **options):
        spec = str(find(kind.removeprefix("worker-")))
        # MLX chooses its threads by itself.
        threads = None if kind.endswith("mlx") else 1
        settings = EngineOptions(threads=threads, context_tokens=256, **options)
        if kind.startswith("worker-"):
            from overspill.worker import WorkerEmbedder

            return WorkerEmbedder(spec, options=settings)
        return open_embedder(spec, options=settings)

    return build


@pytest.fixture(scope="module", params=KINDS)
async def embedder(request, open_kind):
    """One running embedder of each kind."""
    async with open_kind(request.param) as running:
        yield running


@pytest.fixture(scope="session")
def ask():
    """``ask("one", "two", pooling="none")``: a request."""

    def build(*texts, **options):
        return EmbedRequest(tuple(texts), **options)

    return build
