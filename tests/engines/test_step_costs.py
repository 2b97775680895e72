"""What steps cost, as measured."""

from __future__ import annotations

import pytest

from overspill.engines.step_costs import MOST_TIMES, StepCosts


def _costs(measured):
    costs = StepCosts()
    for rows, seconds in measured.items():
        costs.note(rows, 0, seconds)
    return costs


def test_what_was_not_measured_lies_between_what_was():
    costs = _costs({2: 0.02, 6: 0.04})
    assert costs.decode_s(4) == pytest.approx(0.03)
    assert costs.decode_s(1) == 0.02
    assert 0.04 < costs.decode_s(12) < 0.08
    assert StepCosts().decode_s(1) is None


def test_a_larger_step_is_never_guessed_cheaper():
    costs = _costs({2: 0.02, 6: 0.01})
    assert costs.decode_s(4) >= 0.02


def test_one_step_that_was_held_up_changes_little_and_a_lasting_change_a_lot():
    costs = _costs({1: 0.01})
    costs.note(1, 0, 10.0)
    assert costs.decode_s(1) <= 0.01 * MOST_TIMES
    for _ in range(30):
        costs.note(1, 0, 0.05)
    assert costs.decode_s(1) == pytest.approx(0.05, rel=0.1)


def test_prefill_is_what_prompts_add_to_a_step():
    costs = _costs({8: 0.05})
    assert costs.prefill_tokens_per_s is None
    costs.note(8, 100, 0.25)
    assert costs.prefill_tokens_per_s == pytest.approx(500)
    alone = StepCosts()
    alone.note(0, 512, 0.8)
    assert alone.prefill_tokens_per_s == pytest.approx(640)
    # A chunk that hardly shows says nothing about a rate.
    alone.note(8, 3, 0.1)
    assert alone.prefill_tokens_per_s == pytest.approx(640)


def test_beside_decoding_a_prompt_is_told_as_the_last_such_steps_were():
    costs = _costs({8: 0.05})
    costs.note(0, 512, 0.512)
    assert costs.beside_tokens_per_s == pytest.approx(1000)
    # A second pass over the weights, then 5 ms a token.
    costs.note(8, 16, 0.05 + 0.02 + 16 * 0.005)
    assert costs.beside_tokens_per_s == pytest.approx(160)
    # One that was lucky says little, one that was held up more; neither says all.
    costs.note(8, 16, 0.05)
    assert costs.beside_tokens_per_s == pytest.approx(200)
    costs.note(8, 16, 5.0)
    assert costs.beside_tokens_per_s == pytest.approx(100)
    for _ in range(50):
        costs.note(8, 16, 0.04)
    assert costs.beside_tokens_per_s == pytest.approx(1000)


def test_after_a_change_the_next_measurement_counts_and_the_last_is_the_guess_till_then():
    costs = _costs({1: 0.01, 4: 0.03})
    costs.distrust()
    assert costs.decode_s(4) == 0.03
    costs.note(4, 0, 0.06)
    assert costs.decode_s(4) == 0.06
    costs.note(4, 0, 0.07)
    assert 0.06 < costs.decode_s(4) < 0.07
    costs.forget_above(1)
    assert costs.decode_s(1) == 0.01
    assert costs.decode_s(4) < 0.03
