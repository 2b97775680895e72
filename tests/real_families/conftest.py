"""Vocabularies and templates of real families, read where ``scripts/fetch_sdist.py`` put them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

VERSION = "0.3.36"


def _folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "overspill" / "sdists" / f"llama_cpp_python-{VERSION}"


@pytest.fixture(scope="session")
def families() -> Path:
    """The folder; skips, naming the script that fills it, where it is not there."""
    folder = _folder()
    if not folder.is_dir():
        pytest.skip("real families are not fetched; run: python3 scripts/fetch_sdist.py")
    return folder


@pytest.fixture(scope="session")
def template_source(families):
    """``template_source("Qwen3-Coder")``: a chat template's text."""
    return lambda name: (families / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def open_vocabulary(families):
    """``open_vocabulary("qwen2")``: the llama.cpp backend's tokenizer over a vocabulary alone."""
    native = pytest.importorskip("llama_cpp", reason="pip install 'overspill[llama]'")
    from overspill.engines import llama_cpp
    from overspill.engines.gguf_header import read_header
    from overspill.types.card import ModelCard

    class VocabularyOnly(llama_cpp.LlamaCppBackend):
        """What of the backend needs no weights."""

        def __init__(self, path: Path) -> None:
            native.llama_backend_init()
            llama_cpp.native_log()
            params = native.llama_model_default_params()
            params.vocab_only = True
            self._closed, self._guard, self._pieces = False, threading.Lock(), {}
            self._model = native.llama_model_load_from_file(os.fsencode(path), params)
            assert self._model, path
            self._vocab = native.llama_model_get_vocab(self._model)
            control = llama_cpp._control_tokens(path, read_header(path))
            self._vocabulary = llama_cpp._vocabulary(self._vocab, control)
            self._card = ModelCard(path.stem, 0, "llama.cpp")

    opened = {}

    def open_one(name: str) -> VocabularyOnly:
        if name not in opened:
            opened[name] = VocabularyOnly(families / f"ggml-vocab-{name}.gguf")
        return opened[name]

    yield open_one
    for backend in opened.values():
        native.llama_model_free(backend._model)
