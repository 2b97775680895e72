"""What a figure says, and how samples become one."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.bench.figures import FigureSpec, at_least, at_most
from overspill.bench.plot import reached
from overspill.bench.stats import paired_difference, paired_ratio, percentile, spread

numbers = st.floats(1e-6, 1e6)
samples = st.lists(numbers, min_size=1, max_size=50)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=50)


def spec(asked=None):
    return FigureSpec("engine.some.figure", "ratio", "this to that", asked)


@pytest.mark.parametrize(
    ("asked", "value", "ok"),
    [
        (at_least(0.97), 0.97, True),
        (at_least(0.97), 0.969, False),
        (at_most(3.0), 3.0, True),
        (at_most(3.0), 3.001, False),
        (None, 1.0, None),
    ],
)
def test_a_figure_is_ok_on_the_good_side_of_what_was_asked(asked, value, ok):
    assert spec(asked).measured(value).ok is ok


def test_a_measured_figure_has_the_shape_that_others_read():
    assert spec(at_least(0.97)).measured(0.98).as_dict() == {
        "name": "engine.some.figure",
        "value": 0.98,
        "unit": "ratio",
        "asked": 0.97,
        "bound": "at_least",
        "ok": True,
        "about": "this to that",
    }


def test_a_figure_that_was_not_measured_is_null_with_the_reason():
    shape = spec(at_most(1.0)).missing("llama-server was not found").as_dict()
    assert (shape["value"], shape["ok"]) == (None, None)
    assert shape["reason"] == "llama-server was not found"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_reported_as_one(value):
    figure = spec(at_most(1.0)).measured(value)
    assert figure.value is None
    assert figure.ok is None
    assert figure.reason


@given(samples, st.floats(0, 1))
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(values, share):
    found = percentile(values, share)
    assert found in values
    # The definition, less what a float may lose.
    assert sum(v <= found for v in values) >= share * len(values) - 1e-6
    below = [v for v in values if v < found]
    assert not below or len(below) < share * len(values) + 1e-6


@given(samples, st.floats(0, 1), st.floats(0, 1))
def test_percentiles_rise_with_the_share(values, one, other):
    low, high = sorted((one, other))
    assert percentile(values, low) <= percentile(values, high)
    assert percentile(values, 1.0) == max(values)


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 1.1), ([1.0], -0.1)])
def test_a_percentile_of_nothing_or_outside_its_range_is_an_error(values, share):
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, share)


@given(pairs, numbers)
def test_a_machine_that_changes_speed_between_pairs_moves_no_ratio(taken, factor):
    ours, theirs = [a for a, _ in taken], [b for _, b in taken]
    whole = paired_ratio(ours, theirs)
    assert whole.low <= whole.value <= whole.high
    # Every second pair is measured on a machine that is `factor` times as fast.
    faster = [factor if i % 2 else 1.0 for i in range(len(taken))]
    drifted = paired_ratio(
        [a * f for a, f in zip(ours, faster, strict=True)],
        [b * f for b, f in zip(theirs, faster, strict=True)],
    )
    assert drifted.value == pytest.approx(whole.value, rel=1e-9)


@given(pairs)
def test_turning_the_sides_turns_the_extremes(taken):
    ours, theirs = [a for a, _ in taken], [b for _, b in taken]
    there, back = paired_ratio(ours, theirs), paired_ratio(theirs, ours)
    assert there.low == pytest.approx(1 / back.high, rel=1e-9)
    assert paired_difference(ours, theirs) == pytest.approx(-paired_difference(theirs, ours))


@pytest.mark.parametrize(
    ("ours", "theirs"), [([], []), ([1.0], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [-1])]
)
def test_samples_that_are_no_positive_pairs_are_an_error(ours, theirs):
    with pytest.raises(ValueError, match="pairs"):
        paired_ratio(ours, theirs)


@given(samples, numbers)
def test_the_spread_does_not_depend_on_the_unit(values, factor):
    assert spread([v * factor for v in values]) == pytest.approx(spread(values), abs=1e-6)
    assert spread([statistics.median(values)]) == 0


@given(numbers, numbers)
def test_what_was_reached_is_one_or_more_exactly_when_it_is_ok(value, asked):
    for bound in (at_least(asked), at_most(asked)):
        figure = spec(bound).measured(value)
        share = reached(figure.as_dict())
        assert (share >= 1) == figure.ok or share == pytest.approx(1)


def test_nothing_was_reached_where_nothing_was_asked_or_measured():
    assert reached(spec().measured(1.0).as_dict()) is None
    assert reached(spec(at_least(1)).missing("absent").as_dict()) is None
    assert reached(spec(at_most(0.03)).measured(-0.01).as_dict()) is None
