"""Slots: who is computed together sits together, whoever comes and goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.admission import KvReservations
from overspill.engines.slot_choice import choose_slot

SLOTS = 16


def _stretches(slots):
    """How many runs of neighbours these are: passes over the weights."""
    return sum(slot - 1 not in slots for slot in slots)


@given(st.integers(1, SLOTS))
def test_who_is_computed_together_sits_in_one_stretch(count):
    reservations, taken = KvReservations(1000, SLOTS), set()
    for _ in range(count):
        taken.add(reservations.take(1, taken))
    assert taken == set(range(count))


@given(st.integers(1, 4), st.randoms(use_true_random=False))
def test_adapters_keep_together_whoever_comes_first(adapters, random):
    """Scattered they would take sixteen stretches."""
    reservations = KvReservations(1000, SLOTS)
    slots = {adapter: set() for adapter in range(adapters)}
    rounds = SLOTS // adapters
    for _ in range(rounds):
        for adapter in sorted(slots, key=lambda _: random.random()):
            slots[adapter].add(reservations.take(1, slots[adapter]))
    assert sum(map(_stretches, slots.values())) <= 10


def test_four_adapters_in_turn_take_four_stretches():
    reservations = KvReservations(1000, SLOTS)
    slots = [set() for _ in range(4)]
    for n in range(SLOTS):
        slots[n % 4].add(reservations.take(1, slots[n % 4]))
    assert [_stretches(each) for each in slots] == [1, 1, 1, 1]


def test_a_gap_between_companions_is_filled_first():
    assert choose_slot([3, 6, 7], {2, 4, 5}, 8) == 3


@given(st.sets(st.integers(0, SLOTS - 1), min_size=1), st.sets(st.integers(0, SLOTS - 1)))
def test_only_free_slots_are_given(free, companions):
    assert choose_slot(sorted(free), companions - free, SLOTS) in free
