"""Benchmarks at a size for tests: the smallest made model stands in for every shape."""

import pytest

from overspill.bench.peers import PeerPaths
from overspill.bench.suite import Bench, Effort

SMALL = Effort(
    rounds=2,
    short_rounds=2,
    settle_s=0.0,
    streams=3,
    prompt_tokens=24,
    answer_tokens=48,
    system_tokens=64,
    decoders=2,
    long_prompt_tokens=400,
    window_s=0.2,
    cancels=12,
    ttft_requests=2,
)


@pytest.fixture(scope="session")
def made_models(tmp_path_factory):
    """The folder of made models, for all tests of a run."""
    pytest.importorskip("gguf", reason="gguf is not installed (extra 'bench')")
    pytest.importorskip("llama_cpp", reason="llama_cpp is not installed (extra 'llama')")
    return tmp_path_factory.mktemp("made-models")


@pytest.fixture
def small_bench(made_models):
    """A bench without any peer's program."""
    stand_ins = {"q05": "mini", "tiny": "mini", "l1b": "mini"}
    return Bench(SMALL, PeerPaths(), made_models, stand_ins)
