"""What doesn't fit is refused before it is loaded, with the arithmetic."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.engines import memory
from overspill.engines.echo import EchoBackend
from overspill.engines.gguf_header import read_header
from overspill.engines.gguf_memory import LlamaUse, gguf_need
from overspill.engines.options import SchedulerOptions
from overspill.engines.registry import EngineOptions, open_engine
from overspill.engines.scheduler_parts import open_parts
from overspill.engines.step_costs import StepCosts
from overspill.errors import DoesNotFit

LARGE = 1 << 30
MIB = 1 << 20


def test_both_layouts_of_one_model_need_the_same(tiny_gguf, tiny_folder):
    pytest.importorskip("mlx_lm", reason="pip install 'overspill[mlx]'")
    from overspill.engines.mlx_model import FolderModel

    use = LlamaUse(context_tokens=256, max_sequences=1, batch_tokens=64, cache_bytes_each=4)
    by_header = gguf_need(tiny_gguf, read_header(tiny_gguf), use)
    by_model = sum(cost.token_bytes for cost in FolderModel(tiny_folder).outline.cache_costs)
    # Two layers, two heads of 32, keys and values, 4 bytes each.
    assert by_model == 2 * 2 * 32 * 2 * 4
    assert by_header.kv_bytes == 256 * by_model


def _judge(need, available):
    return memory.judge(need, available, context_tokens=100, max_sequences=2)


def test_a_verdict_for_each_side_of_the_limits():
    need = memory.MemoryNeed(
        60 * MIB, 20 * MIB, repacked_bytes=30 * MIB, reclaimable_bytes=30 * MIB
    )
    assert (need.total_bytes, need.least_bytes) == (110 * MIB, 80 * MIB)
    assert _judge(need, None).verdict == "fits"
    assert _judge(need, 200 * MIB).verdict == "fits"
    assert _judge(need, 123 * MIB).verdict == "fits"
    assert _judge(need, 122 * MIB).verdict == "tight"
    assert _judge(need, 80 * MIB).verdict == "tight"
    assert _judge(need, 80 * MIB - 1).verdict == "does_not_fit"
    assert not _judge(need, 200 * MIB).notes
    assert "tight" in _judge(need, 90 * MIB).notes[0]


def test_the_refusal_shows_the_arithmetic():
    need = memory.MemoryNeed(64 * MIB, 200 * MIB)
    memory.check_fits(_judge(need, 264 * MIB), "m")
    with pytest.raises(DoesNotFit) as caught:
        memory.check_fits(_judge(need, 264 * MIB - 1), "m")
    assert (
        "m does not fit: it takes 264 MiB (64 for weights, 200 for the KV cache), with 2 sequences "
        "of 100 tokens; 264 MiB are free." in str(caught.value)
    )
    assert caught.value.exit_code == 5


@given(
    weights=st.integers(0, 1 << 40),
    token=st.integers(1, 1 << 22),
    available=st.integers(1, 1 << 42),
    wanted=st.integers(1, 1 << 20),
)
def test_the_largest_context_fits_and_the_next_does_not(weights, token, available, wanted):
    def need_of(tokens):
        return memory.MemoryNeed(weights, token * tokens)

    found = memory.largest_context(need_of, available, wanted_tokens=wanted)
    room = memory.TIGHT_SHARE * available
    if found is None:
        assert wanted <= 512 or need_of(512).least_bytes > room
    else:
        assert 512 <= found < wanted
        assert found % 256 == 0
        assert need_of(found).least_bytes <= room
        assert found + 256 >= wanted or need_of(found + 256).least_bytes > room


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
    options = EngineOptions(context_tokens=1 << 24, max_sequences=64)
    engine = open_engine(str(path), options=options)
    with pytest.raises(DoesNotFit, match="for the KV cache"):
        await engine.start()
    await engine.aclose()


@given(st.integers(0, LARGE), st.integers(0, LARGE), st.integers(0, LARGE))
def test_copies_beside_a_model_never_make_memory_tight(wanted, need, available):
    room = memory.store_room(wanted, need, available)
    assert 0 <= room <= wanted
    assert room == 0 or need + room <= memory.TIGHT_SHARE * available
    # No less than could be had.
    assert room == wanted or need + room + 1 > memory.TIGHT_SHARE * available
    assert memory.store_room(wanted, need, None) == wanted


@pytest.mark.parametrize(
    ("free_mib", "kept_mib", "told"), [(None, 64, False), (4096, 64, False), (40, 36, True)]
)
def test_computed_prompts_are_kept_in_what_memory_is_left(free_mib, kept_mib, told):
    free_bytes = None if free_mib is None else free_mib * MIB
    parts = open_parts(
        EchoBackend,
        None,
        SchedulerOptions(prefix_cache_bytes=64 * MIB),
        StepCosts(),
        deliver=lambda stream, chunk: None,
        wake=lambda: None,
        clock=lambda: 0.0,
        free_memory=lambda: free_bytes,
    )
    assert bool(parts.notes) == told
    assert all(f"{kept_mib} MiB of computed prompts" in note for note in parts.notes)
    parts.close()
