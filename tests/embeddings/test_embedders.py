"""What every embedder owes, whatever runs behind it; and what only a real model can show."""

from __future__ import annotations

import asyncio
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.engines import machine_load
from overspill.engines.embedder import MAX_TEXTS, batches
from overspill.engines.embedders import open_embedder
from overspill.engines.options import EngineOptions
from overspill.engines.registry import open_engine
from overspill.errors import ContextOverflow, InvalidRequest, ModelInvalid, UnsupportedOption

pytestmark = pytest.mark.anyio

TEXTS = ("a", "bb cc", "some longer text with words", "x" * 90, "a")


async def _vectors(embedder, request):
    return np.array((await embedder.embed(request)).vectors)


async def test_each_text_gets_a_vector_in_its_place(embedder, ask):
    reply = await embedder.embed(ask(*TEXTS))
    assert len(reply.embeddings) == len(TEXTS)
    assert reply.model == embedder.card.name
    assert {e.dimensions for e in reply.embeddings} == {64}
    assert reply.vectors[0] == pytest.approx(reply.vectors[4], abs=1e-3)
    assert reply.vectors[0] != pytest.approx(reply.vectors[1], abs=1e-2)
    assert reply.prompt_tokens == sum(e.tokens for e in reply.embeddings)


async def test_vectors_have_length_one_unless_told_otherwise(embedder, ask):
    for vector in await _vectors(embedder, ask(*TEXTS)):
        assert math.isclose(np.linalg.norm(vector), 1.0, rel_tol=1e-5)
    raw = await _vectors(embedder, ask(*TEXTS, normalize=False))
    scaled = await _vectors(embedder, ask(*TEXTS))
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1.0, atol=1e-3)
    assert np.allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), scaled, atol=1e-5)


async def test_a_texts_vector_does_not_depend_on_its_neighbours(embedder, ask):
    many = tuple(f"text number {i} " * (i % 7 + 1) for i in range(40))
    together = await _vectors(embedder, ask(*many))
    for index in (0, 13, 39):
        alone = await _vectors(embedder, ask(many[index]))
        # Attention rounds to half precision, unless it is told not to.
        assert np.allclose(together[index], alone[0], atol=1e-3)


async def test_exact_attention_agrees_to_single_precision(embedding_file, open_file, ask):
    many = tuple(f"text number {i} " * (i % 7 + 1) for i in range(40))
    for kind in ("bert", "decoder"):
        async with open_file(embedding_file(kind), exact_attention=True) as embedder:
            together = await _vectors(embedder, ask(*many))
            for index in (0, 13, 39):
                alone = await _vectors(embedder, ask(many[index]))
                assert np.allclose(together[index], alone[0], atol=1e-5)


async def test_the_poolings_agree_with_the_tokens_own_vectors(embedder, ask):
    tokens = await embedder.embed(ask("some words here", pooling="none", normalize=False))
    every = np.array(tokens.embeddings[0].vectors)
    assert every.shape == (tokens.embeddings[0].tokens, 64)
    pooled = {
        "mean": every.mean(axis=0),
        "cls": every[0],
        "last": every[-1],
    }
    for pooling, expected in pooled.items():
        reply = await embedder.embed(ask("some words here", pooling=pooling, normalize=False))
        assert reply.pooling == pooling
        assert np.allclose(reply.vectors[0], expected, atol=1e-3)


async def test_a_text_over_the_context_is_an_error_with_both_numbers(embedder, ask):
    with pytest.raises(ContextOverflow) as caught:
        await embedder.embed(ask("short", "word " * 300))
    assert caught.value.context == embedder.card.context == 256
    assert caught.value.prompt_tokens > 256


@pytest.mark.parametrize(
    ("options", "param", "kind"),
    [
        ({"pooling": "max"}, "pooling", InvalidRequest),
        ({"dimensions": 0}, "dimensions", InvalidRequest),
        ({"dimensions": 32}, "dimensions", UnsupportedOption),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(embedder, ask, options, param, kind):
    with pytest.raises(kind) as caught:
        await embedder.embed(ask("x", **options))
    assert caught.value.param == param
    assert len((await embedder.embed(ask("x", dimensions=64))).vectors[0]) == 64


async def test_none_and_too_many_texts_are_refused(embedder, ask):
    for texts in ((), ("x",) * (MAX_TEXTS + 1)):
        with pytest.raises(InvalidRequest) as caught:
            await embedder.embed(ask(*texts))
        assert caught.value.param == "texts"


async def test_requests_at_once_each_get_their_own(embedder, ask):
    replies = await asyncio.gather(*(embedder.embed(ask(f"n{i}", "same")) for i in range(6)))
    firsts = np.array([reply.vectors[0] for reply in replies])
    seconds = np.array([reply.vectors[1] for reply in replies])
    assert np.allclose(seconds, seconds[0], atol=1e-3)
    assert len({tuple(np.round(v, 3)) for v in firsts}) == 6


async def test_a_closed_embedder_is_not_healthy_and_can_be_started_again(open_kind, ask):
    for kind in ("echo", "bert", "worker-echo"):
        embedder = open_kind(kind)
        assert not (await embedder.health()).ok
        await embedder.start()
        assert (await embedder.health()).ok
        await embedder.aclose()
        await embedder.aclose()
        assert not (await embedder.health()).ok
        assert (await embedder.embed(ask("again"))).vectors
        await embedder.aclose()


# --- llama.cpp ----------------------------------------------------------------------------------


@pytest.fixture
def open_file():
    """``open_file(path)``: an embedder by llama.cpp."""
    pytest.importorskip("llama_cpp", reason="pip install 'overspill[llama]'")

    def build(path, **options):
        return open_embedder(str(path), options=EngineOptions(**{"threads": 1, **options}))

    return build


@pytest.mark.parametrize(("number", "pooling"), [(1, "mean"), (2, "cls"), (3, "last")])
async def test_the_models_own_pooling_is_the_default(
    embedding_file, open_file, ask, number, pooling
):
    async with open_file(embedding_file("bert", pooling_type=number)) as embedder:
        own = await embedder.embed(ask("some words"))
        named = await embedder.embed(ask("some words", pooling=pooling))
    assert own.pooling == pooling
    assert np.allclose(own.vectors, named.vectors, atol=1e-6)


async def test_a_model_without_a_pooling_asks_for_one(embedding_file, open_file, ask):
    async with open_file(embedding_file("plain")) as embedder:
        with pytest.raises(UnsupportedOption, match="not made for embeddings") as caught:
            await embedder.embed(ask("x"))
        assert caught.value.param == "pooling"
        assert (await embedder.embed(ask("x", pooling="last"))).vectors


async def test_a_ranking_model_is_refused(embedding_file, open_file):
    with pytest.raises(UnsupportedOption, match="ranks pairs"):
        await open_file(embedding_file("bert", pooling_type=4)).start()


async def test_a_bert_wraps_its_texts_and_reads_marks_as_text(embedding_file, open_file, ask):
    async with open_file(embedding_file("bert")) as embedder:
        # [CLS] and [SEP] are its own; the same words in a text are seven characters each.
        assert (await embedder.embed(ask("a"))).prompt_tokens == 3
        assert (await embedder.embed(ask("[SEP]"))).prompt_tokens > 3
        assert (await embedder.embed(ask(""))).prompt_tokens == 2


async def test_a_model_that_only_embeds_does_not_generate(embedding_file):
    pytest.importorskip("llama_cpp", reason="pip install 'overspill[llama]'")
    engine = open_engine(str(embedding_file("bert")), options=EngineOptions(threads=1))
    with pytest.raises(ModelInvalid, match="embeds texts, and generates none"):
        await engine.start()
    await engine.aclose()


async def test_it_takes_no_more_threads_than_its_quota_allows(
    embedding_file, open_file, ask, tmp_path, monkeypatch
):
    quota = tmp_path / "cpu.max"
    quota.write_text("200000 100000\n")
    monkeypatch.setattr(machine_load, "_CPU_MAX", quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    async with open_file(embedding_file("bert"), threads=None) as embedder:
        await embedder.embed(ask("a"))
        assert native_threads(embedder) == 2


def native_threads(embedder):
    import llama_cpp

    return llama_cpp.llama_n_threads(embedder._loaded.model._context)


async def test_a_damaged_file_is_refused(tmp_path, open_file):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(ModelInvalid):
        await open_file(path).start()


async def test_an_mlx_folder_of_an_encoder_is_refused_plainly(tmp_path):
    pytest.importorskip("mlx_lm", reason="pip install 'overspill[mlx]'")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with pytest.raises(ModelInvalid, match="bert not supported"):
        await open_embedder(str(tmp_path)).start()


@given(
    lengths=st.lists(st.integers(1, 900), max_size=60),
    room=st.integers(1, 600),
    most=st.integers(1, 20),
)
def test_batches_hold_every_text_once_within_the_limits(lengths, room, most):
    found = list(batches(lengths, room, most))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    for batch in found:
        assert 1 <= len(batch) <= most
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= room
