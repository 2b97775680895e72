"""Threads by what else runs: on recorded loads and step times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.backend import Abilities, BatchRow
from overspill.engines.drafts import DraftModel
from overspill.engines.echo import EchoBackend
from overspill.engines.machine_load import (
    LoadMeter,
    ThreadControl,
    busy_ticks,
    quota_cpus,
    read_busy_s,
    usable_cpus,
)
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.scheduled import ScheduledEngine
from overspill.engines.speculation import Speculator
from overspill.engines.step_costs import StepCosts
from overspill.engines.step_runner import StepRunner
from overspill.engines.thread_choice import RETRY_STEPS, TRIAL_STEPS, ThreadChoice, ThreadTrials
from overspill.types.chat import Message, Request


def _choices(most, loads, cores=0):
    choice = ThreadChoice(most, cores)
    return [choice.note_load(load) for load in loads]


def test_a_busy_neighbour_takes_a_thread_at_once_and_gives_it_back_when_it_is_gone():
    # Two cores: the neighbour gets two thirds of one beside two threads, a whole one beside one.
    assert _choices(2, [0.1, 0.67, 1.0, 1.0, 0.05, 0.05, 0.05, 0.1]) == [2, 1, 1, 1, 1, 1, 2, 2]


def test_a_burst_of_calm_brings_no_thread_back():
    assert _choices(2, [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]) == [1] * 7


def test_a_little_load_costs_nothing_and_a_full_machine_leaves_one():
    assert _choices(8, [0.3] * 5) == [8] * 5
    assert _choices(8, [2.0, 3.1, 8.0, 20.0]) == [6, 5, 1, 1]
    # A container that may use two of 64 cores.
    assert _choices(2, [30.0, 61.9, 63.0], cores=64) == [2, 2, 1]


@given(st.integers(1, 64), st.lists(st.floats(0, 100), max_size=50))
def test_there_is_always_a_thread_and_never_one_too_many(most, loads):
    choice = ThreadChoice(most, most)
    for load in loads:
        before = choice.threads
        threads = choice.note_load(load)
        assert 1 <= threads <= most
        assert threads <= before or load <= most - threads + 0.4 + 1e-9


# Seconds of a step of q05 with two threads and with one, alone and beside one busy process.
ALONE, BESIDE = {2: 0.0098, 1: 0.0141}, {2: 0.0267, 1: 0.0128}


def _trial_seconds(trials, world, steps):
    return [trials.note_step(1, world[trials.threads]) for _ in range(steps)]


def test_where_load_is_unknown_slow_steps_are_answered_by_a_trial():
    trials = ThreadTrials(2)
    assert set(_trial_seconds(trials, ALONE, 300)) == {2}
    taken = _trial_seconds(trials, BESIDE, 300)
    assert taken[-1] == 1
    assert taken.count(2) <= 3 * TRIAL_STEPS
    # The neighbour is gone: found out by the next look.
    assert _trial_seconds(trials, ALONE, RETRY_STEPS + 3 * TRIAL_STEPS)[-1] == 2


def test_a_trial_that_shows_nothing_better_is_taken_back():
    slow_for_another_reason = {2: 0.03, 1: 0.05}
    trials = ThreadTrials(2)
    _trial_seconds(trials, ALONE, 50)
    taken = _trial_seconds(trials, slow_for_another_reason, 4 * TRIAL_STEPS)
    assert 1 in taken
    assert ThreadTrials(1).note_step(1, 9.0) == 1


def test_one_slow_step_is_no_reason():
    trials = ThreadTrials(2)
    times = [0.01] * 20 + [0.2] + [0.01] * 20
    assert {trials.note_step(4, seconds) for seconds in times} == {2}


# --- the meter ----------------------------------------------------------------------------------

STAT = """\
cpu  400 20 100 9000 50 10 20 5 7 0
cpu0 100 10 50 4500 25 5 10 5 7 0
cpu1 300 10 50 4500 25 5 10 0 0 0
intr 12345 0 0
ctxt 999
"""


def test_busy_is_all_but_idle_on_the_cpus_that_count():
    assert busy_ticks(STAT, {0}) == 180
    assert busy_ticks(STAT, {0, 1}) == 555
    assert busy_ticks(STAT, {7}) == 0


class Readings:
    def __init__(self):
        self.now_s = self.all_s = self.own_s = 0.0

    def meter(self):
        return LoadMeter(lambda: self.all_s, lambda: self.own_s, lambda: self.now_s)

    def passes(self, seconds, everybody, own):
        self.now_s += seconds
        self.all_s += everybody * seconds
        self.own_s += own * seconds


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("max 100000\n", None), ("200000 100000\n", 2), ("250000 100000", 2), ("50000 100000", 1)],
)
def test_a_containers_quota_counts_in_whole_cpus(text, cpus):
    assert quota_cpus(text) == cpus
    assert usable_cpus() >= 1


def test_others_are_what_this_process_is_not():
    readings = Readings()
    meter = readings.meter()
    readings.passes(0.1, 2.0, 1.3)
    assert meter.sample() is None
    readings.passes(0.4, 2.0, 1.3)
    assert meter.sample() == pytest.approx(0.7)
    readings.passes(0.5, 1.0, 1.2)
    assert meter.sample() == 0.0


def test_what_others_did_while_it_rested_does_not_count():
    readings = Readings()
    meter = readings.meter()
    for _ in range(3):
        readings.passes(0.1, 1.5, 1.0)
        meter.rest()
        meter.rest()
        readings.passes(1.0, 2.0, 0.0)
        meter.resume()
        meter.resume()
    assert meter.sample() == pytest.approx(0.5)
    # Short times of work are no sample, and are forgotten after a while.
    readings.passes(0.2, 2.0, 1.0)
    assert meter.sample() is None
    meter.rest()
    readings.passes(60.0, 2.0, 0.0)
    assert meter.sample() is None
    readings.passes(0.2, 1.0, 1.0)
    assert meter.sample() is None
    readings.passes(0.1, 1.0, 1.0)
    assert meter.sample() == 0.0


def test_this_system_is_read_or_says_that_it_cannot_be():
    first = read_busy_s()
    if first is None:
        pytest.skip("this system has no /proc/stat")
    assert read_busy_s() >= first > 0


# --- in the engine ------------------------------------------------------------------------------


class Threaded(EchoBackend):
    """Echo that pretends to have threads."""

    def __init__(self):
        super().__init__()
        self.set = []

    @property
    def abilities(self):
        return Abilities(cuts=True, most_threads=2)

    def set_threads(self, threads):
        self.set.append(threads)


def test_threads_change_only_when_the_choice_does():
    readings, backend = Readings(), Threaded()
    control = ThreadControl(backend, readings.meter(), cores=2)
    for others in (0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0):
        readings.passes(0.3, 1.0 + others, 1.0)
        control.after_step(1, 0, 0.01)
    assert backend.set == [1, 2]


def test_a_draft_model_takes_as_many_threads_as_its_model(stepped):
    readings, model, draft, costs = Readings(), Threaded(), Threaded(), StepCosts()
    clock = stepped.Clock()
    speculator = Speculator(SchedulerOptions(), costs, draft_model=DraftModel(draft), clock=clock)
    runner = StepRunner(
        model,
        costs,
        speculator,
        ThreadControl(model, readings.meter(), cores=2),
        adapters=False,
        deliver=lambda *_: None,
        clock=clock,
    )
    reading = stepped.generation(0, list(range(100)))
    for step, others in enumerate((0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)):
        readings.passes(0.3, 1.0 + others, 1.0)
        runner.run([(reading, BatchRow(0, step, [step], False))])
    assert draft.set == model.set == [1, 2]


def test_without_readings_trials_decide():
    backend = Threaded()
    control = ThreadControl(backend, LoadMeter(lambda: None))
    for _ in range(50):
        control.after_step(1, 0, ALONE[control.threads])
        control.after_step(1, 400, 5.0)
    for _ in range(50):
        control.after_step(1, 0, BESIDE[control.threads])
    assert backend.set == [1]


@pytest.mark.anyio
async def test_an_engine_says_how_many_threads_it_takes_and_keeps_a_number_that_was_given():
    async with ScheduledEngine(Threaded, name="echo", runtime="echo") as engine:
        _ = [c async for c in engine.generate(Request((Message("user", "hi"),), max_tokens=4))]
        assert engine.status().threads in (1, 2)
    fixed = ScheduledEngine(EchoBackend, name="echo", runtime="echo", options=EngineOptions())
    async with fixed:
        assert fixed.status().threads == 0
