"""Tokenizer, export and the shipped files. No torch here: the committed F32 weights are enough."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.family.config import MODELS
from examples.family.generate import LEVELS, cells, draw
from examples.family.template import CHAT_TEMPLATE, render
from overspill.evals.grade import grade

tokenizers = pytest.importorskip("tokenizers", reason="the family's tests need tokenizers")
gguf = pytest.importorskip("gguf", reason="the family's tests need gguf")

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS_FOLDER = REPOSITORY / "examples" / "family" / "models"
BROOK = REPOSITORY / "sdk" / "overspill" / "models" / "brook" / "brook-q8_0.gguf"
RIVER = MODELS_FOLDER / "river-q8_0.gguf"
BROOK_F32 = MODELS_FOLDER / "brook-f32"
TOKENIZER = tokenizers.Tokenizer.from_file(str(MODELS_FOLDER / "tokenizer.json"))


def _llama(path: Path, **options: Any) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    return llama_cpp.Llama(
        str(path), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False, **options
    )


@settings(deadline=None)
@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@given(st.integers(min_value=0))
def test_each_digit_is_a_token(number: int) -> None:
    assert TOKENIZER.encode(str(number)).tokens == list(str(number))


def test_no_token_hides_a_digit() -> None:
    for token in TOKENIZER.get_vocab():
        assert len(token) == 1 or not any(c.isdigit() for c in token), token


def test_both_runtimes_tokenise_the_same() -> None:
    llama = _llama(BROOK, vocab_only=True)
    rng = Random(21)
    texts = [render(r.messages, r.tools) for r in (draw(rng, *cell, False) for cell in cells())]
    alphabet = "ab Z.,!?'\n\t  019²½Ⅷ٣éßñ中文字🙂{}\"<|>=+-*/'s'll_№\u00a0\u3000\u200d"
    texts += ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(400)]
    texts += ["", " ", "\n\n", "  12  34 ", "I'll've 5's", "a<tool_call>b</tool_call> c"]
    for text in texts:
        mine = TOKENIZER.encode(text, add_special_tokens=False).ids
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == mine, text


def test_sizes_keep_to_their_limits() -> None:
    assert BROOK.stat().st_size <= 2 * 1024**2
    assert RIVER.stat().st_size <= 16 * 1024**2
    assert 0.9e6 <= MODELS["brook"].parameters <= 1.2e6
    assert 4e6 <= MODELS["river"].parameters <= 15e6


@pytest.mark.parametrize("path", [BROOK, RIVER], ids=["brook", "river"])
def test_gguf_metadata(path: Path) -> None:
    reader = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        return reader.get_field(name).contents()

    assert field("general.architecture") == "llama"
    assert field("general.name") == path.name.split("-")[0]
    assert field("llama.context_length") >= 1024
    assert field("tokenizer.chat_template") == CHAT_TEMPLATE
    assert field("tokenizer.ggml.add_bos_token") is False
    config = MODELS[path.name.split("-")[0]]
    assert sum(int(np.prod(t.shape)) for t in reader.tensors) == config.parameters


def test_exported_f32_holds_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="the export needs safetensors")
    from safetensors.numpy import load_file

    from examples.family.export import write_gguf

    write_gguf(BROOK_F32, tmp_path / "brook-f32.gguf")
    reader = gguf.GGUFReader(tmp_path / "brook-f32.gguf")
    mine = {t.name: t for t in reader.tensors}
    theirs = load_file(BROOK_F32 / "model.safetensors")
    assert len(mine) == len(theirs)
    for ours, name in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
    ):
        np.testing.assert_array_equal(np.asarray(mine[ours].data), theirs[name])


def test_layout_says_what_mlx_needs() -> None:
    config = json.loads((BROOK_F32 / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama"
    assert config["tie_word_embeddings"] is True
    tokens = json.loads((BROOK_F32 / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert tokens["chat_template"] == CHAT_TEMPLATE
    shared = (MODELS_FOLDER / "tokenizer.json").read_bytes()
    assert (BROOK_F32 / "tokenizer.json").read_bytes() == shared


def _right(path: Path, seed: int, per_cell: int, levels: tuple[str, ...]) -> float:
    """The share of fresh held-back prompts that a model answers right, greedily."""
    llama = _llama(path)
    rng = Random(seed)
    records = [
        draw(rng, skill, level, reserved=True)
        for skill, level in cells()
        if level in levels
        for _ in range(per_cell)
    ]
    right = 0
    for record in records:
        text = render(record.messages, record.tools)
        ids = llama.tokenize(text.encode(), add_bos=False, special=True)
        reply = llama.create_completion(ids, max_tokens=record.max_tokens, temperature=0.0)
        right += grade(record.kind, record.expected, reply["choices"][0]["text"])
    return right / len(records)


def test_brook_answers_easy_prompts_of_every_skill() -> None:
    assert _right(BROOK, 22, 8, ("easy",)) >= 0.75


def test_river_is_worth_asking() -> None:
    brook, river = (_right(path, 23, 3, LEVELS) for path in (BROOK, RIVER))
    assert river >= 0.8
    assert river >= brook + 0.15
