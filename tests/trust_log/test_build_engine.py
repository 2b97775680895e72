"""The engine's release build: nothing of the machine goes in, and differences are found."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path

import pytest


def script(repository: Path, name: str):
    spec = importlib.util.spec_from_file_location(
        f"script_{name}", repository / f"scripts/{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def build_engine(repository):
    return script(repository, "build_engine")


@pytest.fixture(scope="session")
def try_engine(repository):
    return script(repository, "try_engine")


def wheel(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"llama_cpp/lib/{name.replace('_', '.')}", data)
        archive.writestr("llama_cpp/llama.py", b"no library")
    return path


def test_only_libraries_are_compared(build_engine, tmp_path):
    found = build_engine.digests(wheel(tmp_path / "a.whl", libllama_so=b"1", libggml_so_0=b"2"))
    assert set(found) == {"llama_cpp/lib/libllama.so", "llama_cpp/lib/libggml.so.0"}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"libllama_so": b"1", "libggml_so": b"2"}, None),
        ({"libllama_so": b"1", "libggml_so": b"3"}, "libggml.so"),
        ({"libllama_so": b"1"}, "libggml.so"),
        ({"libllama_so": b"1", "libggml_so": b"2", "libmore_so": b""}, "libmore.so"),
    ],
)
def test_two_builds_are_the_same_or_each_difference_is_named(
    build_engine, tmp_path, capsys, second, said
):
    first = wheel(tmp_path / "a.whl", libllama_so=b"1", libggml_so=b"2")
    other = wheel(tmp_path / "b.whl", **second)
    code = build_engine.compare(build_engine.digests(first), build_engine.digests(other))
    told = capsys.readouterr()
    assert code == (0 if said is None else 1)
    if said is None:
        assert "two clean builds gave the same 2 libraries" in told.out
    else:
        assert told.err == f"DIFFERS: llama_cpp/lib/{said}\n"


def test_two_builds_of_nothing_are_not_the_same(build_engine, capsys):
    assert build_engine.compare({}, {}) == 1
    assert "no library" in capsys.readouterr().err


def test_nothing_of_the_machine_is_in_the_environment_of_a_build(build_engine, tmp_path):
    one = build_engine.environment(tmp_path / "one", 2)
    two = build_engine.environment(tmp_path / "another-name", 2)
    for name in ("CFLAGS", "CXXFLAGS"):
        assert f"-ffile-prefix-map={tmp_path / 'one'}=/build" in one[name]
    differ = {name for name in one if one[name] != two[name]}
    assert differ == {"CFLAGS", "CXXFLAGS"}  # by the very path that is mapped away
    assert "-march" not in one["CFLAGS"]
    assert {"-DGGML_NATIVE=OFF", "-DGGML_CPU_ALL_VARIANTS=ON"} <= set(one["CMAKE_ARGS"].split())
    assert int(one["SOURCE_DATE_EPOCH"])


def test_a_recipe_that_nobody_looked_at_is_not_built(build_engine, tmp_path):
    recipe = tmp_path / "CMakeLists.txt"
    recipe.write_text(f"before\n{build_engine.LEFT_OUT}\nafter\n")
    build_engine.leave_out(recipe)
    assert "LLAMA_BUILD_COMMON OFF" in recipe.read_text()
    with pytest.raises(SystemExit, match="does not say once"):
        build_engine.leave_out(recipe)


@pytest.mark.parametrize(
    ("released", "code"), [([1, 2, 3], 0), ([1, 2, 4], 1), ([1, 2], 1), (None, 1)]
)
def test_tokens_are_compared_one_by_one(try_engine, capsys, released, code):
    said = {} if released is None else {"prompt": released}
    assert try_engine.compare({"prompt": [1, 2, 3]}, said) == code
    told = capsys.readouterr()
    assert ("3 greedy tokens" in told.out) == (code == 0)


def test_the_library_is_taken_out_of_its_wheel(try_engine, tmp_path):
    folder = tmp_path / "lib"
    folder.mkdir()
    try_engine.unpack(wheel(tmp_path / "a.whl", libllama_so=b"1"), folder)
    assert (folder / "libllama.so").read_bytes() == b"1"
    zipfile.ZipFile(tmp_path / "empty.whl", "w").close()
    with pytest.raises(SystemExit, match="nothing in"):
        try_engine.unpack(tmp_path / "empty.whl", folder)
