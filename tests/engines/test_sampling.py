"""Choosing tokens: what each option may leave, and draws that only seed and position decide."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from overspill.engines.distributions import (
    MOST_MARGIN,
    certainty,
    draw,
    filter_candidates,
    top_tokens,
    uniform,
)
from overspill.engines.sampling import Choice, TokenSampler, choose_tokens
from overspill.errors import EngineError
from overspill.types.chat import Sampling

rows = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32))
temperatures = st.floats(0.05, 5.0)


def _sampler(sampling, size, top_logprobs=None):
    return TokenSampler(sampling, vocabulary_size=size, top_logprobs=top_logprobs)


def _log_softmax(row):
    wide = row.astype(np.float64)
    return wide - np.logaddexp.reduce(wide)


@given(rows)
def test_certainty_is_that_of_the_whole_distribution(row):
    found = certainty(row)
    logs = _log_softmax(row)
    best = np.sort(logs)[::-1]
    assert found.largest == row.max()
    assert found.largest + found.normalizer == pytest.approx(
        float(np.logaddexp.reduce(row.astype(np.float64))), abs=1e-4
    )
    lead = best[0] - best[1] if row.size > 1 else MOST_MARGIN
    assert found.margin == pytest.approx(lead, abs=1e-4)
    assert found.entropy == pytest.approx(-float((np.exp(logs) * logs).sum()), abs=1e-4)


def test_certainty_where_the_model_rules_tokens_out():
    found = certainty(np.array([-np.inf, 2.0, -np.inf], np.float32))
    assert (found.margin, found.entropy, found.normalizer) == (MOST_MARGIN, 0.0, 0.0)


@given(rows)
def test_greedy_takes_the_largest_logit(row):
    assert _sampler(Sampling(), row.size).choose(row, 0).token == int(row.argmax())


@given(rows, temperatures, st.integers(1, 10))
def test_top_k_leaves_k_and_the_best_ones(row, temperature, k):
    ids, weights = filter_candidates(row, Sampling(temperature=temperature, top_k=k))
    assert len(ids) == min(k, row.size)
    assert min(row[ids]) >= max((v for i, v in enumerate(row) if i not in set(ids)), default=-99)
    assert weights.sum() == pytest.approx(1.0)


@given(rows, temperatures, st.floats(0.05, 0.99))
def test_top_p_leaves_the_smallest_set_that_reaches_p(row, temperature, p):
    ids, _ = filter_candidates(row, Sampling(temperature=temperature, top_p=p))
    scaled = row.astype(np.float64) / temperature
    chances = np.exp(scaled - scaled.max())
    chances /= chances.sum()
    assert chances[ids].sum() >= p - 1e-6
    assert chances[ids[:-1]].sum() < p + 1e-6


@given(rows, temperatures, st.floats(0.01, 1.0))
def test_min_p_leaves_what_is_near_the_best(row, temperature, min_p):
    ids, weights = filter_candidates(row, Sampling(temperature=temperature, min_p=min_p))
    assert int(row.argmax()) in {int(i) for i in ids if row[i] == row.max()} | {int(row.argmax())}
    assert all(weights >= min_p * weights[0] - 1e-9)


@given(rows, temperatures, st.integers(0, 2**63 - 1), st.integers(0, 10_000))
def test_a_draw_is_possible_and_repeats(row, temperature, seed, position):
    sampling = Sampling(temperature=temperature, top_k=5, top_p=0.9, seed=seed)
    allowed = {int(i) for i in filter_candidates(row, sampling)[0]}
    first = _sampler(sampling, row.size).choose(row, position).token
    assert first in allowed
    assert _sampler(sampling, row.size).choose(row, position).token == first


def _reference(row, sampling):
    """Ids and probabilities, best first, by sorting everything and in no clever way."""
    order = sorted(range(row.size), key=lambda i: (-row[i], i))
    if sampling.top_k:
        order = order[: sampling.top_k]
    weights = [
        math.exp((float(row[i]) - float(row[order[0]])) / sampling.temperature) for i in order
    ]
    weights = [weight / math.fsum(weights) for weight in weights]
    if sampling.top_p < 1.0:
        keep, mass = 0, 0.0
        while keep < len(order) and (keep == 0 or mass < sampling.top_p):
            mass, keep = mass + weights[keep], keep + 1
        order, weights = order[:keep], weights[:keep]
    if sampling.min_p:
        weights = [weight for weight in weights if weight >= sampling.min_p * weights[0]]
        order = order[: len(weights)]
    return order, [weight / math.fsum(weights) for weight in weights]


samplings = st.builds(
    Sampling,
    temperature=st.floats(0.05, 20.0),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([1.0, 0.97, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)


@settings(max_examples=300)
@given(
    st.integers(1, 400),
    st.floats(0.1, 30.0),
    st.integers(0, 10_000),
    samplings,
    st.floats(0, 0.999),
)
def test_a_draw_is_what_sorting_everything_gives(size, spread, seed, sampling, point):
    row = (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)
    row[::7] = row[0]
    ids, weights = _reference(row, sampling)
    token = draw(row, sampling, point)
    at = ids.index(token)
    before = math.fsum(weights[:at])
    # In float32 the mass of all is known to some 1e-7.
    assert before - 1e-5 <= point <= before + weights[at] + 1e-5
    if sampling.top_k == 0 and sampling.top_p == 1.0 and not sampling.min_p:
        return
    kept, chances = filter_candidates(row, sampling)
    if len(kept) == len(ids):
        assert list(kept) == ids
        assert list(chances) == pytest.approx(weights, abs=1e-5)
    else:
        # A token at the very edge of top_p or min_p may fall on either side of it.
        assert abs(len(kept) - len(ids)) <= 1 + list(row).count(row[0])


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(0, 3))
def test_the_generator_is_numpys_philox(seed, position, attempt):
    counter = np.array([position, attempt, 0, 0], np.uint64)
    raw = np.random.Philox(counter=counter, key=np.array([seed, 0], np.uint64)).random_raw()
    assert uniform(seed, position, attempt) == (int(raw) >> 11) * 2.0**-53


def test_impossible_tokens_are_never_drawn():
    row = np.full(1000, -np.inf, np.float32)
    row[[5, 700]] = 1.0
    drawn = {draw(row, Sampling(temperature=2.0), point) for point in np.linspace(0, 0.9999, 50)}
    assert drawn == {5, 700}
    assert list(top_tokens(row, 3))[:2] == [5, 700]


def test_draws_follow_the_probabilities():
    row = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = _sampler(Sampling(temperature=1.0, seed=3), 3)
    counts = np.bincount([sampler.choose(row, i).token for i in range(6000)], minlength=3)
    assert counts / 6000 == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
def test_the_generator_is_counter_based(seed, position):
    value = uniform(seed, position)
    assert 0.0 <= value < 1.0
    assert uniform(seed, position) == value
    assert uniform(seed, position + 1) != value
    assert uniform(seed ^ 1, position) != value


def test_the_generator_is_philox_and_stays_so():
    # A change here would break continuations that were begun by an older version.
    assert [uniform(7, 0), uniform(7, 1), uniform(8, 0)] == pytest.approx(PHILOX, abs=0)


PHILOX = [0.8720734548204873, 0.0828426870273763, 0.9956763359513338]


def test_without_a_seed_two_requests_differ():
    samplers = [_sampler(Sampling(temperature=1.0), 4) for _ in range(2)]
    assert samplers[0].seed != samplers[1].seed


@given(rows, st.integers(1, 50))
def test_top_tokens_are_the_largest_in_order(row, count):
    found = top_tokens(row, count)
    assert list(row[found]) == sorted(row, reverse=True)[:count]
    assert len(set(found)) == len(found) == min(count, row.size)


@given(rows)
def test_log_probs_ignore_bias_penalties_and_temperature(row):
    odd = Sampling(temperature=0.3, seed=1, logit_bias={0: 50.0}, presence_penalty=1.0)
    sampler = _sampler(odd, row.size, top_logprobs=2)
    sampler.observe(0)
    choice = sampler.choose(row, 5)
    assert choice.logprob == pytest.approx(float(_log_softmax(row)[choice.token]))
    expected = sorted(_log_softmax(row), reverse=True)[:2]
    assert [p for _, p in choice.top] == pytest.approx(expected)


def test_penalties_lower_what_was_said():
    row = np.array([2.0, 1.5, -1.0], np.float32)
    for sampling in (
        Sampling(presence_penalty=1.0),
        Sampling(frequency_penalty=1.0),
        Sampling(repeat_penalty=2.0),
    ):
        sampler = _sampler(sampling, 3)
        assert sampler.choose(row, 0).token == 0
        sampler.observe(0)
        assert sampler.choose(row, 1).token == 1
    frequent = _sampler(Sampling(frequency_penalty=0.3), 3)
    frequent.observe(0)
    assert frequent.choose(row, 0).token == 0
    frequent.observe(0)
    assert frequent.choose(row, 0).token == 1


def test_the_row_itself_is_left_alone():
    row = np.array([2.0, 1.5], np.float32)
    sampler = _sampler(Sampling(presence_penalty=1.0, logit_bias={0: -9.0}), 2)
    sampler.observe(0)
    sampler.choose(row, 0)
    assert list(row) == [2.0, 1.5]


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, (5, 12), elements=st.floats(-20, 20, width=32)),
    st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_a_batch_gives_each_row_what_it_gets_alone(logits, greedy):
    samplings = [Sampling() if plain else Sampling(temperature=1.0, seed=4) for plain in greedy]
    samplers = [_sampler(sampling, 12) for sampling in samplings]
    together = choose_tokens(samplers, logits, list(range(5)))
    alone = [s.choose(row, i) for i, (s, row) in enumerate(zip(samplers, logits, strict=True))]
    assert together == alone


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)])
def test_logits_that_are_no_numbers_fail_their_own_row_alone(bad, sampling):
    logits = np.array([[1.0, 2.0, 0.0], [1.0, bad, 0.0], [0.0, 1.0, 2.0]], np.float32)
    samplers = [_sampler(which, 3) for which in (Sampling(), sampling, Sampling())]
    first, spoiled, last = choose_tokens(samplers, logits, [0, 0, 0])
    assert isinstance(spoiled.failure, EngineError)
    assert "not numbers" in spoiled.failure.message
    assert (first, last) == (Choice(1), Choice(2))
