"""What keeps clients from making a bad moment worse."""

from __future__ import annotations

import pytest

from overspill.transport.guard import CircuitBreaker, Guard, GuardOptions, RetryBudget, Throttle

OPTIONS = GuardOptions()


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_second_try_is_earned_by_ten_first_ones():
    budget = RetryBudget(OPTIONS)
    for _ in range(10):
        assert budget.spend()
    assert not budget.spend()
    for _ in range(10):
        budget.earn()
    # Ten tenths may fall a hair short of one.
    budget.earn()
    assert budget.spend()
    assert not budget.spend()


@pytest.mark.parametrize(
    ("requests", "accepts", "probability"),
    [(9, 0, 0.0), (20, 10, 0.0), (20, 5, 10 / 21), (20, 0, 20 / 21), (40, 0, 40 / 41)],
)
def test_the_throttle_follows_its_formula(requests, accepts, probability):
    throttle = Throttle(OPTIONS, Clock())
    for number in range(requests):
        throttle.answered(accepted=number < accepts)
    assert throttle.refusal_probability == pytest.approx(probability)


def test_refusals_grow_old_and_one_request_in_a_while_is_let_through():
    clock = Clock()
    throttle = Throttle(OPTIONS, clock, draw=lambda: 0.0)
    for _ in range(100):
        throttle.answered(accepted=False)
    assert throttle.allow()
    assert not throttle.allow()
    clock.now += OPTIONS.probe_every_s
    assert throttle.allow()
    clock.now += OPTIONS.throttle_window_s + 1
    assert throttle.refusal_probability == 0.0


def test_a_circuit_opens_after_failures_and_lets_one_in_each_pause():
    clock = Clock()
    breaker = CircuitBreaker(OPTIONS, clock)
    for _ in range(OPTIONS.open_after):
        assert breaker.allow()
        breaker.failed()
    assert not breaker.allow()
    clock.now += OPTIONS.min_open_s
    assert breaker.allow()
    assert not breaker.allow()
    breaker.failed()
    clock.now += OPTIONS.min_open_s
    assert not breaker.allow()  # the pause has doubled
    clock.now += OPTIONS.min_open_s
    assert breaker.allow()
    assert breaker.succeeded()
    assert breaker.allow()
    assert not breaker.is_open


def test_a_node_that_is_back_is_used_at_once():
    clock = Clock()
    guard = Guard(OPTIONS, clock, draw=lambda: 0.0)
    for _ in range(100):
        guard.refused()
    assert guard.is_open
    clock.now += OPTIONS.max_open_s
    assert guard.allow()
    guard.accepted()
    assert all(guard.allow() for _ in range(20))
