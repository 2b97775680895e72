"""Models that embed: a BERT and a decoder with random weights, and one without weights."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest

from overspill.engines.embedders import open_embedder
from overspill.engines.options import EngineOptions
from overspill.types.embedding import EmbedRequest

KINDS = ["echo", "bert", "decoder", "worker-echo", "worker-bert"]


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
def open_kind(embedding_file):
    """``open_kind("worker-bert")``: an embedder, not yet started; skips when not installed."""

    def build(kind, **options):
        model = kind.removeprefix("worker-")
        if model != "echo" and find_spec("llama_cpp") is None:
            pytest.skip("llama.cpp is not installed; pip install 'overspill[llama]'")
        spec = "echo" if model == "echo" else str(embedding_file(model))
        settings = EngineOptions(threads=1, context_tokens=256, **options)
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
