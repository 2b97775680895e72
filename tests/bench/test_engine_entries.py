"""Every entry really runs: our side on the smallest model, peers' programs as stand-ins.

What comes out is looked at for its shape alone: nothing here depends on the machine's speed.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from overspill.bench.engine import ENTRIES
from overspill.bench.peers import PeerPaths
from overspill.bench.plot import draw
from overspill.bench.suite import QUICK, Bench, chosen_entries, run_entry, run_suite
from overspill.bench.watched import Step, longest_wait
from overspill.engines.backend import BatchRow

BY_NAME = {entry.name: entry for entry in ENTRIES}
NEED_NO_PEER = [
    "cancel",
    "lookup.q05",
    "draft.q05",
    "lora4.q05",
    "join8k.q05",
    "fit.tiny",
    "worker.q05.throughput",
    "worker.tiny.ttft",
    "overhead.tiny",
]
NEED_STAND_INS = [
    "stream1.q05",
    "stream1.q05.sdk_stream",
    "streams16.q05.vs_llama_server",
    "streams16.q05.grpc.vs_llama_server",
    "streams16.q05.vs_llama_batched_bench",
    "prefix.q05",
    "behind8k.q05",
    "contended.q05",
]


@pytest.fixture
def stand_ins(tmp_path):
    """Peers' programs that answer at once."""
    server = Path(__file__).with_name("fake_llama_server.py")
    batched = json.dumps({"pl": 3, "tg": 8, "t": 1.0})
    scripts = {
        "llama_bench": """echo '[{"avg_ts": 100.0}]'""",
        "llama_server": f'exec "{sys.executable}" "{server}" "$@"',
        "llama_batched_bench": f"echo '{batched}'",
    }
    paths = {}
    for name, text in scripts.items():
        paths[name] = tmp_path / name.replace("_", "-")
        paths[name].write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        paths[name].chmod(0o755)
    return PeerPaths(**paths)


def test_figures_have_stable_names_of_their_own():
    names = [spec.name for entry in ENTRIES for spec in entry.figures]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"engine(\.[a-z0-9_]+)+", name) for name in names)
    assert "engine.streams16.q05.vs_llama_server" in names
    assert len(BY_NAME) == len(ENTRIES)


@pytest.mark.parametrize(
    ("name", "bound", "asked"),
    [
        ("engine.stream1.q05.vs_llama_bench", "at_least", 0.97),
        ("engine.stream1.q05.sdk_stream.vs_llama_bench", "at_least", 0.95),
        ("engine.streams16.q05.vs_llama_server", "at_least", 1.05),
        ("engine.streams16.q05.grpc.vs_llama_server", "at_least", 0.98),
        ("engine.streams16.tiny.vs_llama_server", "at_least", 1.3),
        ("engine.streams16.q05.vs_example_server", "at_least", 1.2),
        ("engine.streams16.q05.vs_library_server", "at_least", 4.5),
        ("engine.prefix.q05.ttft_vs_llama_server", "at_most", 1.0),
        ("engine.join8k.q05.itl_p99_vs_idle", "at_most", 3.0),
        ("engine.behind8k.q05.ttft_vs_llama_server", "at_most", 0.2),
        ("engine.cancel.late_steps", "at_most", 1),
        ("engine.lookup.q05.copying_vs_off", "at_least", 1.4),
        ("engine.lookup.q05.not_copying_vs_off", "at_least", 0.97),
        ("engine.lookup.q05.misleading_vs_off", "at_least", 0.97),
        ("engine.lora4.q05.vs_none", "at_least", 0.6),
        ("engine.lora4.q05.longest_wait_steps", "at_most", 4),
        ("engine.contended.q05.vs_llama_bench", "at_least", 1.7),
        ("engine.fit.q05.error", "at_most", 0.1),
        ("engine.worker.q05.throughput_loss", "at_most", 0.03),
        ("engine.worker.tiny.ttft_added_ms", "at_most", 0.3),
    ],
)
def test_each_figure_asks_what_was_asked(name, bound, asked):
    specs = {spec.name: spec for entry in ENTRIES for spec in entry.figures}
    shape = specs[name].measured(1.0).as_dict()
    assert (shape["bound"], shape["asked"]) == (bound, asked)


TOO_BUSY = ("came in one piece", "gave no two pieces")


def check_result(result):
    for figure in result.figures:
        # A busy machine may hand a small model's whole answer over at once, or hand none over in
        # the moment that is looked at.
        measured = figure.value is not None or any(why in figure.reason for why in TOO_BUSY)
        assert measured, f"{figure.spec.name}: {figure.reason}"
    for samples in result.samples:
        assert samples.values


@pytest.mark.anyio
@pytest.mark.parametrize("name", NEED_NO_PEER)
async def test_an_entry_measures_our_side(small_bench, name):
    check_result(await run_entry(BY_NAME[name], small_bench))


@pytest.mark.anyio
@pytest.mark.parametrize("name", NEED_STAND_INS)
async def test_an_entry_measures_both_sides(small_bench, stand_ins, name):
    result = await run_entry(BY_NAME[name], replace(small_bench, peers=stand_ins))
    check_result(result)
    rounds = {len(samples.values) for samples in result.samples}
    assert rounds <= {small_bench.effort.rounds}


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["stream1.q05", "streams16.q05.vs_llama_server"])
async def test_without_the_peer_our_own_rate_is_still_measured(small_bench, name):
    ratio, rate = (await run_entry(BY_NAME[name], small_bench)).figures
    assert ratio.value is None
    assert "was not found" in ratio.reason
    assert rate.value > 0


@pytest.mark.anyio
async def test_the_library_s_own_server_is_a_peer_wherever_it_is_installed(small_bench):
    pytest.importorskip("starlette_context", reason="the extra 'bench' is not installed")
    check_result(await run_entry(BY_NAME["streams16.q05.vs_library_server"], small_bench))


@pytest.mark.anyio
async def test_river_copies_what_it_extracts(small_bench, repository):
    bench = replace(small_bench, family=repository / "examples" / "family")
    acceptance, share = (await run_entry(BY_NAME["lookup.river"], bench)).figures
    assert 0 < acceptance.value <= 1
    assert 0 < share.value <= 1


@pytest.mark.anyio
async def test_without_the_family_river_s_figures_say_why(small_bench):
    result = await run_entry(BY_NAME["lookup.river"], small_bench)
    assert all("not here" in figure.reason for figure in result.figures)


@pytest.mark.anyio
async def test_with_mlx_alone_each_figure_says_that_it_is_llama_cpp_s(
    tmp_path, repository, monkeypatch
):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    bench = Bench(QUICK, PeerPaths(), tmp_path, family=repository / "examples" / "family")
    figures = [figure for entry in ENTRIES for figure in (await run_entry(entry, bench)).figures]
    assert all(figure.value is None for figure in figures)
    assert all("llama.cpp" in figure.reason for figure in figures)
    assert all("pip install" in figure.reason for figure in figures)
    assert not list(tmp_path.iterdir())


@pytest.mark.anyio
async def test_a_report_can_be_drawn(small_bench, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra 'plots' is not installed")
    chosen = chosen_entries(ENTRIES, ["fit.tiny"])
    report = await run_suite("engine", chosen, ENTRIES, small_bench)
    draw(report, tmp_path / "engine.png")
    assert (tmp_path / "engine.png").read_bytes().startswith(b"\x89PNG")


def steps(*sequences):
    return [
        Step(float(n), n + 0.5, None, tuple(BatchRow(s, n, [0], True) for s in group))
        for n, group in enumerate(sequences)
    ]


@pytest.mark.parametrize(
    ("groups", "longest"),
    [
        ([], 0),
        ([{0, 1}, {0, 1}], 0),
        ([{0}, {1}, {2}, {3}, {0}], 3),
        ([{0}, {1}, {1}, {1}], 0),  # what never comes again has not waited
        ([{0}, {1}, {0}, {1}, {1}, {0}], 2),
    ],
)
def test_a_wait_is_counted_between_two_steps_of_a_sequence(groups, longest):
    assert longest_wait(steps(*groups)) == longest
