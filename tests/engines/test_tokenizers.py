"""Two runtimes' tokenizers over one vocabulary: same tokens, and bytes that give the text back."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

MARKS = ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
texts = st.text(max_size=40) | st.lists(
    st.sampled_from([*MARKS, " ", "\n", "12345", "  x", "it's", "é", "😀", "\t\t", "<|im_"]),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def llama(tiny_gguf):
    pytest.importorskip("llama_cpp")
    from overspill.engines.llama_cpp import LlamaCppBackend, LlamaCppOptions

    options = LlamaCppOptions(context_tokens=256, max_sequences=1, threads=1)
    backend = LlamaCppBackend(tiny_gguf, name="tiny", options=options)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def mlx(tiny_folder):
    pytest.importorskip("mlx_lm")
    from overspill.engines.mlx import MlxBackend

    backend = MlxBackend(tiny_folder, name="tiny")
    yield backend
    backend.close()


def _bytes(backend, tokens):
    return b"".join(backend.token_bytes(token) for token in tokens)


@settings(max_examples=300)
@given(texts)
@example("x\u2028y  \u00a0z")
def test_tokens_give_the_text_back_byte_by_byte(llama, mlx, text):
    for backend in (llama, mlx):
        assert _bytes(backend, backend.tokenize(text, special=False)) == text.encode()


@settings(max_examples=300)
@given(texts, st.booleans())
def test_both_runtimes_tokenize_alike(llama, mlx, text, special):
    assert llama.tokenize(text, special=special) == mlx.tokenize(text, special=special)


def test_control_tokens_are_one_token_only_where_they_count(llama, mlx):
    for backend in (llama, mlx):
        assert len(backend.tokenize("<|im_end|>", special=True)) == 1
        assert len(backend.tokenize("<|im_end|>", special=False)) > 1
        assert backend.token_bytes(backend.tokenize("<|im_end|>")[0]) == b""
        assert _bytes(backend, backend.tokenize("<tool_call>")) == b"<tool_call>"


def test_both_runtimes_know_the_same_vocabulary(llama, mlx):
    ours, theirs = llama.vocabulary, mlx.vocabulary
    assert (ours.size, ours.bos_id) == (theirs.size, theirs.bos_id)
    assert set(ours.control_texts) == set(theirs.control_texts)
    end = llama.tokenize("<|im_end|>")[0]
    assert end in ours.end_ids
    assert end in theirs.end_ids
    assert llama.chat_template == mlx.chat_template
