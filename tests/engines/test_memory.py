"""What doesn't fit is refused before it is loaded, with the arithmetic."""

from __future__ import annotations

import json
import shutil
import struct

import pytest

from overspill.engines import memory
from overspill.engines.gguf_header import read_header
from overspill.engines.registry import EngineOptions, open_engine
from overspill.errors import DoesNotFit

LARGE = 1 << 30


def test_both_layouts_of_one_model_need_the_same(tiny_gguf, tiny_folder):
    by_header = memory.gguf_kv_shape(read_header(tiny_gguf).metadata, bytes_each=4)
    config = json.loads((tiny_folder / "config.json").read_text())
    by_config = memory.config_kv_shape(config, bytes_each=4)
    # Two layers, two heads of 32, keys and values, 4 bytes each.
    assert by_header.token_bytes == by_config.token_bytes == 2 * 2 * 32 * 2 * 4


def test_the_refusal_shows_the_arithmetic():
    kv = memory.KvShape(values=1 << 19)
    need = memory.memory_need(64 << 20, kv, context_tokens=100, max_sequences=2)
    memory.check_fits(need, "m", available_bytes=264 << 20)
    memory.check_fits(need, "m", available_bytes=None)
    with pytest.raises(DoesNotFit) as caught:
        memory.check_fits(need, "m", available_bytes=(264 << 20) - 1)
    assert "264 MiB (64 for its weights, 200 for the KV cache); 263 MiB are free" in str(
        caught.value
    )


@pytest.mark.parametrize("metadata", [{}, {"general.architecture": "x", "x.block_count": "many"}])
def test_a_model_that_does_not_say_its_shape_is_not_refused(metadata):
    assert memory.gguf_kv_shape(metadata) is None
    assert memory.config_kv_shape({}, bytes_each=2) is None
    assert memory.memory_need(5, None, context_tokens=9, max_sequences=9).total_bytes == 5


def test_a_containers_limit_counts(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)

    assert memory._cgroup_room(tmp_path) is None
    write("memory.max", "max\n")
    write("memory.current", "700\n")
    write("memory.stat", "anon 500\ninactive_file 150\n")
    assert memory._cgroup_room(tmp_path) is None
    write("memory.max", "1000\n")
    assert memory._cgroup_room(tmp_path) == 450


def test_this_machine_says_what_is_free():
    free = memory.available_memory()
    assert free is None or free > 1 << 20


@pytest.fixture
def vast_gguf(tiny_gguf, tmp_path):
    """The tiny model, claiming to be trained for a billion tokens."""
    data = bytearray(tiny_gguf.read_bytes())
    key = b"llama.context_length"
    at = data.index(key) + len(key) + 4
    data[at : at + 4] = struct.pack("<I", LARGE)
    path = tmp_path / "vast.gguf"
    path.write_bytes(data)
    return path


@pytest.fixture
def vast_folder(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "vast")
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = LARGE
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fixture", "module"), [("vast_gguf", "llama_cpp"), ("vast_folder", "mlx_lm")]
)
async def test_a_cache_that_cannot_fit_is_refused_before_it_is_made(request, fixture, module):
    pytest.importorskip(module)
    path = request.getfixturevalue(fixture)
    options = EngineOptions(context_tokens=1 << 24, max_sequences=64, threads=1)
    engine = open_engine(str(path), options=options)
    with pytest.raises(DoesNotFit, match="for the KV cache"):
        await engine.start()
    await engine.aclose()
