"""llama.cpp's backends are there before a model is loaded, however the library was built."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp", reason='pip install "overspill[llama]"')

from overspill.engines import llama_backends
from overspill.errors import EngineError


def test_a_library_with_its_backends_built_in_is_left_alone():
    for _ in range(2):
        llama_backends.start_backends()
    assert llama_backends._registered(llama_backends.binding._lib) >= 1


class Bare:
    """A library without a backend of its own; ``beside`` are those that it finds in a folder."""

    def __init__(self, beside: int) -> None:
        self.found: list[bytes] = []
        self.count = 0

        def count() -> int:
            return self.count

        def load(folder: bytes) -> None:
            self.found.append(folder)
            self.count = beside

        self.ggml_backend_reg_count, self.ggml_backend_load_all_from_path = count, load


def test_variants_are_loaded_from_the_librarys_own_folder(monkeypatch, tmp_path):
    library = Bare(beside=1)
    monkeypatch.setattr(llama_backends.binding, "_lib", library)
    monkeypatch.setattr(llama_backends.binding, "_base_path", tmp_path)
    llama_backends.start_backends()
    llama_backends.start_backends()
    assert library.found == [str(tmp_path).encode()]


def test_a_library_without_a_variant_for_this_machine_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(llama_backends.binding, "_lib", Bare(beside=0))
    monkeypatch.setattr(llama_backends.binding, "_base_path", tmp_path)
    with pytest.raises(EngineError, match="no backend for this machine"):
        llama_backends.start_backends()
