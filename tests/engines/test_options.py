"""What can be chosen about an engine, and what is refused before it could do harm."""

from __future__ import annotations

import math

import pytest

from overspill.engines.embedders import open_embedder
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.registry import open_engine
from overspill.errors import ConfigurationError, UnsupportedOption


@pytest.mark.parametrize(
    ("name", "value", "bounds"),
    [
        ("prefill_chunk_tokens", 0, "from 1 to 1,048,576"),
        ("prefill_chunk_tokens", 2.5, "a whole number from 1"),
        ("prefill_stretch", 0.9, "a number from 1"),
        ("prefill_stretch", math.nan, "a number from 1"),
        ("short_prompt_stretch", -1, "from 1"),
        ("max_queued", -1, "from 0"),
        ("batch_ageing_s", -0.1, "from 0"),
        ("stall_after_s", 0.0, "from 0.001"),
        ("max_failed_steps", 0, "from 1"),
        ("prefix_cache_bytes", -1, "from 0"),
        ("max_draft_tokens", -1, "from 0"),
        ("gather_s", 61.0, "from 0 to 60"),
        ("max_adapters", 0, "from 1"),
        ("max_adapters", True, "a whole number from 1"),
        ("speculation", "often", "auto, always, off"),
    ],
)
def test_a_number_out_of_bounds_is_refused_by_name_and_bounds(name, value, bounds):
    with pytest.raises(ConfigurationError) as caught:
        SchedulerOptions(**{name: value})
    assert caught.value.message.startswith(f"{name} is {value!r}")
    assert bounds in str(caught.value)


def test_the_ends_of_the_bounds_are_taken():
    SchedulerOptions(
        prefill_chunk_tokens=1, prefill_stretch=1, max_queued=0, batch_ageing_s=math.inf,
        stall_after_s=0.3, max_failed_steps=1, prefix_cache_bytes=0, max_draft_tokens=0, gather_s=0,
        max_adapters=1,
    )  # fmt: skip


@pytest.fixture
def spec_of(request):
    """``spec_of("mlx")``: what opens that runtime."""

    def find(runtime):
        if runtime == "echo":
            return runtime
        extra = {"llama.cpp": "llama_cpp", "mlx": "mlx_lm"}[runtime]
        pytest.importorskip(extra)
        return str(
            request.getfixturevalue({"llama.cpp": "tiny_gguf", "mlx": "tiny_folder"}[runtime])
        )

    return find


SET = {
    "threads": 2,
    "exact_attention": True,
    "adapters": {"one": "one.gguf"},
    "draft_model": "echo",
    "mmproj": "eyes.gguf",
    "kv_bits": 8,
}
READ = {
    "echo": {"threads", "exact_attention", "adapters", "draft_model"},
    "llama.cpp": {"threads", "exact_attention", "adapters", "draft_model", "mmproj"},
    "mlx": {"adapters", "draft_model", "kv_bits"},
}


@pytest.mark.parametrize("name", SET)
@pytest.mark.parametrize("runtime", READ)
@pytest.mark.parametrize("opener", [open_engine, open_embedder])
def test_an_option_is_read_or_refused_by_name(opener, runtime, name, spec_of):
    read = READ[runtime]
    if opener is open_embedder:
        read = read & {"threads", "exact_attention"}
    options = EngineOptions(**{name: SET[name]})
    if name in read:
        opener(spec_of(runtime), options=options)
        return
    with pytest.raises(UnsupportedOption, match=f"{name} has no use there") as caught:
        opener(spec_of(runtime), name="mine", options=options)
    assert caught.value.param == name
    assert caught.value.message.startswith(f"mine runs on {runtime}, which ")
    assert "Leave it out" in caught.value.mend


@pytest.mark.parametrize("runtime", READ)
@pytest.mark.parametrize("opener", [open_engine, open_embedder])
def test_a_default_that_nobody_set_is_never_refused(opener, runtime, spec_of):
    opener(spec_of(runtime), options=EngineOptions())
