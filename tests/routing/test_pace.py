"""Measured pace: surprises count at once, fade without news, and are told as percentiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.lengths import AnswerLengths
from overspill.pace import Average, CloudMeter, Pace, Timing
from overspill.types.chat import Finish, FinishReason, Message, Request
from overspill.types.usage import Usage

times = st.floats(1e-4, 1e3)


def test_a_surprise_counts_at_once_and_is_forgotten_without_news() -> None:
    average = Average()
    for moment in range(10):
        average.observe(1.0, float(moment))
    assert average.mean(10.0) == average.p95(10.0) == 1.0
    average.observe(9.0, 10.0)
    assert average.mean(10.0) > 5.0
    assert average.p95(10.0) > average.mean(10.0)
    assert average.mean(1e5) == pytest.approx(1.4, abs=0.1)  # the long run


def test_nothing_measured_has_no_mean() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        Average().mean(0.0)


@given(st.lists(times, min_size=1, max_size=30), st.floats(0, 1e4))
def test_a_mean_stays_within_what_was_measured(values: list[float], later_s: float) -> None:
    average = Average()
    for moment, value in enumerate(values):
        average.observe(value, float(moment))
    mean = average.mean(len(values) + later_s)
    assert min(values) * (1 - 1e-9) <= mean <= max(values) * (1 + 1e-9)
    assert average.p95(len(values) + later_s) >= mean


@given(st.lists(st.tuples(times, times), min_size=1, max_size=8), st.integers(2, 16))
def test_a_device_slowed_n_times_is_told_as_n_times_slower(
    runs: list[tuple[float, float]], slowed: int
) -> None:
    fast, slow = Pace(), Pace()
    for moment, (prefill_s, decode_s) in enumerate(runs):
        fast.observe(Usage(100, 51, prefill_s=prefill_s, decode_s=decode_s), float(moment))
        slow.observe(
            Usage(100, 51, prefill_s=slowed * prefill_s, decode_s=slowed * decode_s), float(moment)
        )
    one, other = fast.speeds(100, 9.0), slow.speeds(100, 9.0)
    assert one.decode == pytest.approx(slowed * (other.decode or 0.0))
    assert one.prefill_slow == pytest.approx(slowed * (other.prefill_slow or 0.0))


def test_what_is_kept_comes_back() -> None:
    pace = Pace()
    pace.observe(Usage(100, 51, prefill_s=0.5, decode_s=2.0), 0.0)
    again = Pace.from_json(pace.to_json())
    assert again.speeds(0, 1e9).decode == pytest.approx(25)
    with pytest.raises(ValueError, match="no time"):
        Pace.from_json({"prefill": {"0": -1}, "decode": {}})


def finish(queue_s: float, prefill_s: float) -> Finish:
    usage = Usage(100, 81, queue_s=queue_s, prefill_s=prefill_s, decode_s=99.0)
    return Finish(FinishReason.STOP, usage, "river")


def test_the_road_is_what_queue_and_prefill_leave_of_the_first_token() -> None:
    meter = CloudMeter()
    meter.observe(finish(0.2, 0.1), Timing(0.5, 2.5), 0.0)
    network = meter.network("river", 100, 0.0)
    assert network.rtt_s == pytest.approx(0.2)
    assert network.queue_s == pytest.approx(0.2)
    assert network.prefill_tokens_per_s == pytest.approx(1000)
    assert network.decode_tokens_per_s == pytest.approx(40)  # as it came here, not as it was told
    assert meter.network("another", 100, 0.0).decode_tokens_per_s is None


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.001, 10), st.floats(0.001, 10))
def test_a_node_that_tells_wrong_cannot_look_faster(
    queue_s: float, prefill_s: float, first_s: float, decode_s: float
) -> None:
    meter = CloudMeter()
    meter.observe(finish(queue_s, prefill_s), Timing(first_s, first_s + decode_s), 0.0)
    network = meter.network("river", 100, 0.0)
    told = (network.rtt_s or 0.0) + network.queue_s
    if network.prefill_tokens_per_s:
        told += 100 / network.prefill_tokens_per_s
    assert told == pytest.approx(first_s, rel=1e-6, abs=1e-4)
    assert (network.decode_tokens_per_s or 0.0) <= 80 / decode_s * (1 + 1e-6)


@pytest.mark.parametrize("word", [float("nan"), float("inf"), -1.0, 5e-324])
def test_a_node_that_tells_nonsense_spoils_nothing(word: float) -> None:
    meter = CloudMeter()
    for _ in range(3):
        meter.observe(finish(word, word), Timing(0.5, 2.5), 0.0)
    network = meter.network("river", 100, 1.0)
    assert 0 <= (network.rtt_s or 0.0) + network.queue_s <= 0.5
    assert network.decode_tokens_per_s == pytest.approx(40)


def test_failures_count_and_fade() -> None:
    meter = CloudMeter()
    meter.observe(finish(0, 0.1), Timing(0.2, 1), 0.0)
    meter.observe_failure(1.0)
    assert meter.network("river", 10, 1.0).failure_share > 0.2
    assert meter.network("river", 10, 1e5).failure_share < 0.1


def asked(text: str, max_tokens: int | None = None, app: str = "a") -> Request:
    return Request((Message("user", text),), app=app, max_tokens=max_tokens)


def test_answers_are_as_long_as_those_of_their_kind() -> None:
    lengths = AnswerLengths()
    for tokens in (40, 50, 60, 50):
        lengths.observe(asked("hello"), Usage(5, tokens))
    found = lengths.expected(asked("howdy"))
    assert found is not None
    assert 40 < found.tokens < 70
    assert lengths.expected(asked("hello", app="b")) is None
    assert lengths.expected(asked("hello" * 100)) is None


def test_a_cut_answer_never_shortens_what_is_expected() -> None:
    lengths = AnswerLengths()
    for _ in range(5):
        lengths.observe(asked("hello"), Usage(5, 100))
    before = lengths.expected(asked("hello"))
    lengths.observe(asked("hello", 10), Usage(5, 10))
    assert lengths.expected(asked("hello")) == before


def test_what_a_crowd_costs_is_learnt_and_is_not_taken_for_a_slower_device() -> None:
    pace = Pace()

    def run(beside: int, moment: int) -> None:
        crowd = 1.0 + 0.4 * beside
        pace.observe(Usage(100, 51, prefill_s=0.5 * crowd, decode_s=crowd), float(moment), beside)

    for moment in range(0, 600, 2):
        run(0, moment)
        run(moment // 2 % 3, moment + 1)
    alone, crowded = pace.speeds(100, 600.0), pace.speeds(100, 600.0, beside=2)
    assert alone.decode == pytest.approx(50.0, rel=0.05)
    assert crowded.decode == pytest.approx(50.0 / 1.8, rel=0.08)
    assert crowded.prefill == pytest.approx(200.0 / 1.8, rel=0.08)
    again = Pace.from_json(pace.to_json()).speeds(100, 0.0, beside=2)
    assert again.decode == pytest.approx(crowded.decode, rel=0.05)
