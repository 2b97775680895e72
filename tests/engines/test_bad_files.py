"""Bad model files: one typed error in one line, and never the end of the app."""

from __future__ import annotations

import json
import random
import shutil
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.gguf_header import read_header
from overspill.engines.registry import EngineOptions, open_engine, runtime_of
from overspill.errors import InvalidRequest, ModelInvalid, ModelNotFound, OverspillError
from overspill.worker import WorkerEngine

OPTIONS = EngineOptions(threads=1, context_tokens=256, max_sequences=1)


def _one_line(error):
    assert "\n" not in str(error)
    assert error.mend
    return str(error)


def _patched(path, key, value, tmp_path):
    """The file with the 32-bit value after a metadata key replaced."""
    data = bytearray(path.read_bytes())
    at = data.index(key) + len(key) + 4
    data[at : at + 4] = struct.pack("<I", value)
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data)
    return bad


# --- found by looking at the header -------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    for look in (runtime_of, open_engine, WorkerEngine):
        with pytest.raises(ModelNotFound, match="nowhere") as caught:
            look(str(tmp_path / "nowhere.gguf"))
        _one_line(caught.value)
    with pytest.raises(ModelNotFound):
        read_header(tmp_path / "nowhere.gguf")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelInvalid, match=r"config\.json") as caught:
        open_engine(str(tmp_path))
    _one_line(caught.value)


def test_the_header_of_a_good_file(tiny_gguf):
    header = read_header(tiny_gguf)
    assert header.architecture == "llama"
    assert header.metadata["llama.context_length"] == 512
    assert header.metadata["tokenizer.ggml.tokens"].length == 2048
    assert header.parameters == 2048 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 192 + 2 * 64) + 64
    assert header.file_size == tiny_gguf.stat().st_size


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 zip", b"GGUF", b"GGUF\x09\0\0\0"])
def test_a_foreign_file_is_refused(content, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelInvalid, match=r"x\.gguf") as caught:
        read_header(path)
    _one_line(caught.value)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.5, 0.99, 0.9999])
def test_a_truncated_file_is_refused_with_both_sizes(share, tiny_gguf, tmp_path):
    data = tiny_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelInvalid, match="is truncated") as caught:
        read_header(path)
    assert str(path.stat().st_size) in _one_line(caught.value)


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8))
def test_the_header_reader_only_ever_raises_model_invalid(tiny_gguf, patches):
    data = bytearray(tiny_gguf.read_bytes())
    for at, value in patches:
        data[at] = value
    path = tiny_gguf.parent / "fuzzed.gguf"
    path.write_bytes(data)
    try:
        read_header(path)
    except ModelInvalid as error:
        _one_line(error)


# --- found by the runtime, or by its death ------------------------------------------------------


@pytest.mark.anyio
async def test_a_file_that_aborts_native_code_ends_the_worker_and_not_us(tiny_gguf, tmp_path):
    pytest.importorskip("llama_cpp")
    bad = _patched(tiny_gguf, b"llama.block_count", 0, tmp_path)
    engine = WorkerEngine(str(bad), options=OPTIONS)
    with pytest.raises(ModelInvalid, match="took the worker process down") as caught:
        await engine.start()
    assert "SIGABRT" in _one_line(caught.value)
    assert not (await engine.health()).ok
    await engine.aclose()


@pytest.mark.anyio
async def test_what_the_runtime_refuses_arrives_as_its_typed_error(tiny_gguf, tmp_path):
    pytest.importorskip("llama_cpp")
    bad = _patched(tiny_gguf, b"llama.attention.head_count", 0, tmp_path)
    for engine in (open_engine(str(bad), options=OPTIONS), WorkerEngine(str(bad), options=OPTIONS)):
        with pytest.raises(ModelInvalid, match=r"llama\.cpp cannot load") as caught:
            await engine.start()
        _one_line(caught.value)
        await engine.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(6))
async def test_fuzzed_files_never_take_the_app_down(seed, tiny_gguf, tmp_path, kit):
    pytest.importorskip("llama_cpp")
    rng = random.Random(seed)
    data = bytearray(tiny_gguf.read_bytes())
    for _ in range(1 + 3 * seed):
        data[rng.randrange(24, 60_000)] = rng.randrange(256)
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(data)
    engine = WorkerEngine(str(path), options=OPTIONS)
    try:
        chunks = await kit.collect(engine, kit.ask("hello", max_tokens=4))
        assert chunks[-1].finish is not None
    except OverspillError as error:
        _one_line(error)
    finally:
        await engine.aclose()


@pytest.fixture
def mlx_copy(tiny_folder, tmp_path):
    pytest.importorskip("mlx_lm")
    return shutil.copytree(tiny_folder, tmp_path / "tiny")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: (f / "config.json").write_text("{"),
        lambda f: (f / "config.json").write_text("[]"),
        lambda f: (f / "config.json").write_text('{"model_type": "no-such"}'),
        lambda f: (f / "tokenizer.json").unlink(),
        lambda f: (f / "tokenizer.json").write_text("{}"),
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64),
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-1000]
        ),
        lambda f: (f / "tokenizer_config.json").write_text(
            json.dumps({"chat_template": "{% for %}"})
        ),
    ],
    ids=[
        "broken-config", "list-config", "foreign-architecture", "no-tokenizer", "empty-tokenizer",
        "foreign-weights", "truncated-weights", "broken-template",
    ],
)  # fmt: skip
async def test_a_spoilt_mlx_folder_is_invalid(spoil, mlx_copy):
    spoil(mlx_copy)
    engine = open_engine(str(mlx_copy), options=replace(OPTIONS, threads=None))
    with pytest.raises(ModelInvalid) as caught:
        await engine.start()
    _one_line(caught.value)
    await engine.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["llama.cpp", "mlx"])
async def test_a_context_beyond_the_models_own_is_refused(kind, open_kind):
    engine = open_kind(kind, context_tokens=100_000)
    with pytest.raises(InvalidRequest, match="trained for 512") as caught:
        await engine.start()
    assert caught.value.param == "context_tokens"
