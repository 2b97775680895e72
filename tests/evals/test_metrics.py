"""The metrics of an order: their definitions, on cases that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from overspill.evals import metrics
from overspill.evals.metrics import Floats, Outcomes

FOUR = Outcomes(np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0]))


def outcomes_of(labels: Floats) -> Outcomes:
    return Outcomes(labels[:, 0], labels[:, 1])


labels = hnp.arrays(np.float64, st.tuples(st.integers(2, 40), st.just(2)), elements=st.floats(0, 1))


def test_all_cut_points_count() -> None:
    curve = metrics.quality_curve(np.array([4.0, 2.0, 3.0, 1.0]), FOUR)
    assert curve.tolist() == [0.5, 0.75, 1.0, 1.0, 0.75]


def test_pgr_may_exceed_one_and_apgr_is_its_integral() -> None:
    pgr = metrics.recovered(np.array([4.0, 2.0, 3.0, 1.0]), FOUR)
    assert pgr.tolist() == [0, 1, 2, 2, 1]
    assert metrics.apgr(pgr) == pytest.approx((0.5 + 1.5 + 2 + 1.5) / 4)
    assert metrics.cpt(pgr, 0.8) == 0.25
    assert metrics.pgr_at(pgr, 0.2) == pytest.approx(0.8)


@given(labels)
def test_equal_scores_are_random(found: Floats) -> None:
    outcomes = outcomes_of(found)
    if outcomes.gap < metrics.MIN_GAP:
        return
    pgr = metrics.recovered(np.zeros(len(found)), outcomes)
    assert metrics.apgr(pgr) == pytest.approx(0.5)
    assert metrics.cpt(pgr, 0.5) == pytest.approx(0.5, abs=1 / len(found))


@given(labels, st.randoms(use_true_random=False))
def test_ties_do_not_favour_an_order_of_rows(found: Floats, random: object) -> None:
    outcomes = outcomes_of(found)
    score = np.round(found[:, 0] * 3)
    shuffled = np.random.default_rng(1).permutation(len(found))
    before = metrics.quality_curve(score, outcomes)
    after = metrics.quality_curve(score[shuffled], outcomes.take(shuffled))
    assert before == pytest.approx(after)


@given(labels)
def test_no_order_beats_the_oracle(found: Floats) -> None:
    outcomes = outcomes_of(found)
    best = metrics.quality_curve(outcomes.gain, outcomes)
    other = metrics.quality_curve(found[:, 1], outcomes)
    assert (other <= best + 1e-9).all()


@pytest.mark.parametrize("gap", [0.0, 0.04, -0.3])
def test_a_small_gap_leaves_shares_of_it_undefined(gap: float) -> None:
    outcomes = Outcomes(np.full(20, 0.5), np.full(20, 0.5 + gap))
    assert set(metrics.ranking(np.arange(20.0), outcomes).values()) == {None}
    assert "points" in (metrics.gap_problem(outcomes) or "")
    assert set(metrics.bootstrap(np.arange(20.0), outcomes, resamples=5, seed=0).values()) == {None}


def test_auc_counts_ties_half() -> None:
    positive = np.array([True, False, True, False])
    assert metrics.auc(np.array([4.0, 1.0, 3.0, 2.0]), positive) == 1.0
    assert metrics.auc(np.zeros(4), positive) == 0.5
    assert metrics.auc(np.zeros(4), np.ones(4, dtype=bool)) is None


def test_ece_is_zero_for_the_truth_and_near_one_for_its_contrary() -> None:
    label = np.array([0.0, 1.0] * 50)
    assert metrics.ece(label, label) == 0
    assert metrics.ece(1 - label, label) > 0.95
    assert metrics.ece(np.full(100, 0.5), label) < 0.1


def test_an_interval_holds_the_value_and_narrows_with_more_prompts() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for count in (100, 2000):
        small, noise = rng.random(count) < 0.5, rng.random(count)
        outcomes = Outcomes(small.astype(float), np.ones(count))
        score = noise - 0.5 * small
        low, high = metrics.bootstrap(score, outcomes, resamples=200, seed=0)["apgr"] or (0, 0)
        value = metrics.ranking(score, outcomes)["apgr"]
        assert value is not None
        assert low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
