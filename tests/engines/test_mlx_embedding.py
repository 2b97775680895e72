"""Embeddings by MLX: llama.cpp's vectors for the same weights, and what mlx-lm cannot compute."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from overspill.engines.embedders import open_embedder
from overspill.engines.options import EngineOptions
from overspill.errors import UnsupportedOption
from overspill.types.embedding import EmbedRequest

pytest.importorskip("mlx_lm", reason="pip install 'overspill[mlx]'")
pytestmark = pytest.mark.anyio

TEXTS = ("one", "a few words more", "naïve 😀", "a text that takes several chunks " * 40)


async def _vectors(spec, pooling):
    options = EngineOptions(context_tokens=512)
    if not spec.is_dir():
        options = replace(options, threads=1, exact_attention=True)
    async with open_embedder(str(spec), options=options) as embedder:
        reply = await embedder.embed(EmbedRequest(TEXTS, pooling=pooling))
    assert max(embedding.tokens for embedding in reply.embeddings) > 256
    return [vector for embedding in reply.embeddings for vector in embedding.vectors]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "none"])
async def test_both_runtimes_give_the_same_vectors(pooling, tiny_folder, tiny_gguf):
    pytest.importorskip("llama_cpp", reason="pip install 'overspill[llama]'")
    ours, theirs = [await _vectors(spec, pooling) for spec in (tiny_folder, tiny_gguf)]
    assert np.array(ours) == pytest.approx(np.array(theirs), abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "sliding", "gpt2", "mamba2", "falcon_h1", "gpt_bigcode"])
async def test_neighbours_and_chunks_change_no_vector(kind, made_mlx, tmp_path, tiny_folder):
    folder = made_mlx.write(kind, tmp_path / kind, tiny_folder / "tokenizer.json")
    options = EngineOptions(context_tokens=512)
    async with open_embedder(str(folder), options=options) as embedder:
        together = await embedder.embed(EmbedRequest(TEXTS, pooling="mean"))
        alone = [await embedder.embed(EmbedRequest((text,), pooling="mean")) for text in TEXTS]
    for embedding, other in zip(together.embeddings, alone, strict=True):
        assert np.array(embedding.vectors) == pytest.approx(np.array(other.vectors), abs=1e-5)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: (folder / "2_Dense").mkdir(), "layers behind its pooling"),
        (
            lambda folder: (folder / "config.json").write_text(
                json.dumps(
                    json.loads((folder / "config.json").read_text())
                    | {"use_bidirectional_attention": True}
                )
            ),
            "attends both ways",
        ),
    ],
)
async def test_what_mlx_lm_would_compute_wrongly_is_refused(spoil, why, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    spoil(folder)
    with pytest.raises(UnsupportedOption, match=why):
        await open_embedder(str(folder)).start()


async def test_a_folder_that_names_no_pooling_asks_for_one(tiny_folder):
    async with open_embedder(str(tiny_folder)) as embedder:
        with pytest.raises(UnsupportedOption, match="not made for embeddings"):
            await embedder.embed(EmbedRequest(("x",)))
