"""Rounds, streams on a caller's clock, and what becomes of an entry that cannot measure."""

import asyncio
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.bench import machine
from overspill.bench.figures import FigureSpec, at_least
from overspill.bench.rounds import Side, alternate
from overspill.bench.streams import StreamClock, StreamTimes, aggregate_tokens_per_s
from overspill.bench.suite import Entry, Outcome, chosen_entries, run_entry, run_suite
from overspill.errors import ConfigurationError, EngineError, UsageError

RATIO = FigureSpec("engine.made.up", "ratio", "one to the other", at_least(1.0))


@pytest.mark.anyio
@pytest.mark.parametrize(("rounds", "warmups"), [(1, 0), (2, 1), (5, 1), (3, 2)])
async def test_sides_take_turns_and_the_order_turns_with_them(rounds, warmups):
    order = []

    def side(name):
        async def measure(number):
            order.append((number, name))
            return float(number)

        return Side(name, "s", measure)

    samples = await alternate(side("a"), side("b"), rounds=rounds, warmups=warmups, settle_s=0)
    assert [s.side for s in samples] == ["a", "b"]
    assert all(s.values == tuple(map(float, range(rounds))) for s in samples)
    assert len(order) == 2 * (rounds + warmups)
    firsts = [name for _, name in order[::2]]
    assert all(one != other for one, other in itertools.pairwise(firsts))


@pytest.mark.anyio
async def test_a_failing_side_ends_the_measurement():
    async def fails(number):
        raise EngineError("broken")

    with pytest.raises(EngineError, match="broken"):
        await alternate(Side("a", "s", fails), rounds=2, settle_s=0)


def test_times_of_a_stream():
    times = StreamTimes(1.0, ((3.0, 2), (4.0, 1), (7.0, 3)), 7.5, 6)
    assert times.ttft_s == 2.0
    # Four tokens after the first piece, in four seconds.
    assert times.decode_tokens_per_s == 1.0
    other = StreamTimes(2.0, ((3.0, 1), (9.0, 1)), 9.0, 2)
    assert aggregate_tokens_per_s([times, other]) == 8 / 8.0


def test_an_answer_in_one_piece_has_no_rate():
    with pytest.raises(EngineError, match="one piece"):
        _ = StreamTimes(0.0, ((1.0, 5),), 1.0, 5).decode_tokens_per_s


def test_an_answer_of_another_length_is_no_sample():
    clock = StreamClock()
    with pytest.raises(EngineError, match="no text"):
        clock.times()
    clock.note(3)
    assert clock.times(3).tokens == 3
    with pytest.raises(EngineError, match="4 tokens were asked for, 3 came"):
        clock.times(4)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0, 100))
def test_gaps_before_and_after_a_moment_are_all_gaps(times, moment):
    clock = StreamClock()
    clock.pieces = [(at, 1) for at in sorted(times)]
    before, after = clock.gaps_s(-1, moment), clock.gaps_s(moment, 101)
    assert len(before) + len(after) == len(times) - 1
    assert sum(before) + sum(after) == pytest.approx(max(times) - min(times), abs=1e-9)


# --- entries ------------------------------------------------------------------------------------


def entry(name, run, *figures, optional=False):
    return Entry(name, figures or (RATIO,), run, optional)


async def gives_two(bench):
    return Outcome({RATIO.name: 2.0})


async def gives_nothing(bench):
    return Outcome({})


async def finds_no_peer(bench):
    raise ConfigurationError("llama-server was not found.", mend="Build it.")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("run", "value", "reason"),
    [
        (gives_two, 2.0, ""),
        (gives_nothing, None, "its entry gave no value"),
        (finds_no_peer, None, "llama-server was not found. Build it."),
    ],
)
async def test_an_entry_gives_all_its_figures_or_says_why_not(small_bench, run, value, reason):
    result = await run_entry(entry("a", run), small_bench)
    (figure,) = result.figures
    assert (figure.value, figure.reason) == (value, reason)


@pytest.mark.anyio
async def test_a_mistake_of_the_benchmark_is_not_taken_for_an_absent_peer(small_bench):
    async def mistaken(bench):
        raise KeyError("typo")

    with pytest.raises(KeyError):
        await run_entry(entry("a", mistaken), small_bench)


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        ([], ["one.q05", "one.tiny"]),
        (["one"], ["one.q05", "one.tiny", "one.l1b"]),
        (["one.l1b"], ["one.l1b"]),
        (["one.tiny", "one.q05"], ["one.q05", "one.tiny"]),
    ],
)
def test_entries_are_chosen_by_name_or_its_beginning(only, chosen):
    known = [
        entry("one.q05", gives_two),
        entry("one.tiny", gives_two),
        entry("one.l1b", gives_two, optional=True),
    ]
    assert [e.name for e in chosen_entries(known, only)] == chosen


@pytest.mark.parametrize("name", ["on", "one.q", "two", "one.q05.more"])
def test_a_name_that_is_none_is_an_error_that_lists_them(name):
    with pytest.raises(UsageError, match=r"Known: one\.q05"):
        chosen_entries([entry("one.q05", gives_two)], [name])


@pytest.mark.anyio
async def test_a_report_holds_the_figures_of_what_was_left_out_too(small_bench):
    other = FigureSpec("engine.other", "ms", "left out")
    run, left = entry("a", gives_two), entry("b", gives_two, other)
    lines = []
    report = await run_suite("engine", [run], [run, left], small_bench, lines.append)
    report = json.loads(json.dumps(report))
    values = {f["name"]: f["value"] for f in report["figures"]}
    assert values == {"engine.made.up": 2.0, "engine.other": None}
    assert report["figures"][1]["reason"] == "not chosen for this run"
    assert lines == ["[1/1] a"]
    assert report["full"] is False
    assert report["effort"]["rounds"] == 2
    assert report["machine"]["cpus"] >= 1


@pytest.mark.anyio
async def test_a_run_that_is_ended_keeps_what_it_measured(small_bench):
    async def is_ended(bench):
        raise KeyboardInterrupt

    other = FigureSpec("engine.other", "ms", "never measured")
    entries = [entry("a", gives_two), entry("b", is_ended, other)]
    kept = []
    with pytest.raises(KeyboardInterrupt):
        await run_suite("engine", entries, entries, small_bench, keep=kept.append)
    (report,) = kept
    assert [f["value"] for f in report["figures"]] == [2.0, None]
    assert report["figures"][1]["reason"] == "the run ended before it"
    assert any("too early" in warning for warning in report["warnings"])


# --- the machine --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "cpus", "busy"),
    [((0.1, 0, 0), 2, False), ((0.9, 0, 0), 2, True), ((0.9, 0, 0), 16, False), (None, 2, False)],
)
def test_a_busy_machine_is_warned_about(load, cpus, busy):
    assert bool(machine.busy_warning(load, cpus)) is busy


def test_others_work_is_warned_about():
    assert machine.others_warning(None) is None
    assert machine.others_warning(0.01) is None
    assert "30%" in machine.others_warning(0.3)


@pytest.mark.anyio
async def test_own_work_and_that_of_ended_children_is_not_others():
    watch = machine.OthersWatch()
    if watch.share(1) is None:
        pytest.skip("the CPUs' time is not known on this system")
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    )
    await process.wait()
    # Whatever else ran meanwhile, it is a share of all CPUs.
    assert 0.0 <= watch.share(machine.usable_cpus()) <= 1.0
