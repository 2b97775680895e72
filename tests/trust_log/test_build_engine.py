"""The script that builds the engine for release: what it compares, without compiling anything."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def script(repository: Path):
    spec = importlib.util.spec_from_file_location(
        "build_engine", repository / "scripts/build_engine.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(path: Path, **libraries: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llama_cpp/__init__.py", "code")
        for name, content in libraries.items():
            archive.writestr(f"llama_cpp/lib/{name}", content)
    return path


def test_the_same_libraries_pass(script, tmp_path, capsys):
    both = [
        script.digests(wheel(tmp_path / name, **{"liba.so": "1", "libb.so.0": "2"}))
        for name in ("a.whl", "b.whl")
    ]
    assert script.compare(*both) == 0
    assert "same 2 libraries" in capsys.readouterr().out


@pytest.mark.parametrize("other", [{"liba.so": "2"}, {}, {"liba.so": "1", "libb.so": "1"}])
def test_a_library_that_differs_is_named(script, tmp_path, capsys, other):
    first = script.digests(wheel(tmp_path / "a.whl", **{"liba.so": "1"}))
    assert script.compare(first, script.digests(wheel(tmp_path / "b.whl", **other))) == 1
    assert "DIFFERS: llama_cpp/lib/lib" in capsys.readouterr().err


def test_nothing_is_not_the_same(script, tmp_path):
    assert script.compare({}, {}) == 1


def test_the_build_is_portable_and_leaves_no_trace(script, tmp_path):
    made = script.environment(tmp_path)
    assert "-DGGML_NATIVE=OFF" in made["CMAKE_ARGS"]
    assert "-DGGML_CPU_ALL_VARIANTS=ON" in made["CMAKE_ARGS"]
    assert f"-ffile-prefix-map={tmp_path}=/build" in made["CFLAGS"]
    assert made["SOURCE_DATE_EPOCH"]
