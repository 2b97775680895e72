"""Real vocabularies: tokens as llama.cpp's own tests expect them, and text that comes back."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overspill.engines.answer_text import AnswerForm
from overspill.engines.chat_format import ChatTemplate
from overspill.engines.constraint import Constrainer
from overspill.engines.constraint_grammar import request_grammar
from overspill.types.chat import Message, Request

SPLIT = "\n__ggml_vocab_test__\n"
BYTE_LEVEL = [
    "aquila", "command-r", "deepseek-coder", "deepseek-llm", "gpt-2", "gpt-neox", "llama-bpe",
    "mpt", "qwen2", "qwen35",
]  # fmt: skip
LACK_BYTES = ["falcon", "refact", "starcoder"]
"""Their vocabularies cannot spell every byte, so not every text."""
SENTENCE_PIECE = ["baichuan", "gemma-4", "llama-spm", "phi-3"]
WITH_CASES = [
    "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2",
    "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
]  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("name", WITH_CASES)
def test_texts_become_the_tokens_that_llama_cpp_expects(open_vocabulary, families, name):
    backend = open_vocabulary(name)
    path = families / f"ggml-vocab-{name}.gguf"
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split(SPLIT)
    lines = path.with_name(path.name + ".out").read_text(encoding="utf-8").splitlines()
    assert len(texts) - len(lines) in (0, 1)
    for text, line in zip(texts, lines, strict=False):
        assert backend.tokenize(text, special=False) == [int(token) for token in line.split()]


@pytest.mark.parametrize("name", [*BYTE_LEVEL, *SENTENCE_PIECE])
@settings(max_examples=40)
@given(text=st.text(max_size=30))
def test_tokens_give_the_text_back(open_vocabulary, name, text):
    backend = open_vocabulary(name)
    data = b"".join(backend.token_bytes(t) for t in backend.tokenize(text, special=False))
    if name in SENTENCE_PIECE:
        # SentencePiece puts a space before a text; what it writes itself has none to lose.
        assert data.removeprefix(b" ") == text.encode().removeprefix(b" ")
    else:
        assert data == text.encode()


@pytest.mark.parametrize("name", LACK_BYTES)
@settings(max_examples=40)
@given(text=st.text("aé 12\n{}[]:,_", max_size=30))
def test_common_text_comes_back_from_every_vocabulary(open_vocabulary, name, text):
    backend = open_vocabulary(name)
    tokens = backend.tokenize(text, special=False)
    assert b"".join(backend.token_bytes(token) for token in tokens) == text.encode()


@pytest.mark.parametrize("name", ["qwen2", "llama-bpe", "llama-spm", "gemma-4"])
def test_blind_choices_among_what_is_allowed_are_of_the_schema(open_vocabulary, name):
    backend, rng = open_vocabulary(name), random.Random(1)
    request = Request(messages=(Message("user", "x"),), json_schema=SCHEMA)
    grammar, param = request_grammar(request, AnswerForm())
    constrainer = Constrainer(backend)
    for _ in range(3):
        constraint, data = constrainer.constrain(grammar, param=param), b""
        while not constraint.is_finished:
            allowed = constraint.allowed_ids()
            # Short tokens first, or a number never ends.
            token = int(allowed[rng.randrange(len(allowed))])
            token = next((int(t) for t in allowed if backend.token_bytes(int(t)) == b"}"), token)
            assert constraint.allows(token)
            constraint.advance(token)
            data += backend.token_bytes(token)
        value = json.loads(data)
        assert set(value) == {"name", "n"}
        assert len(value["name"]) <= 8


@pytest.mark.parametrize(
    ("template", "vocabulary", "spelled"),
    [
        ("meta-llama-Llama-3.1-8B-Instruct", "llama-bpe", set()),
        ("Qwen-Qwen2.5-7B-Instruct", "qwen2", set()),
        ("Qwen3.5-4B", "qwen35", set()),
    ],
)
def test_control_tokens_that_mean_something_are_seen(
    open_vocabulary, template_source, template, vocabulary, spelled
):
    backend = open_vocabulary(vocabulary)
    form = AnswerForm.of(ChatTemplate(template_source(template), model="m").abilities, backend)
    for token, mark in form.spelled.items():
        assert backend.tokenize(mark.decode()) == [token]
        assert form.token_of(mark.decode()) == token
    assert {mark.decode() for mark in form.spelled.values()} >= spelled
