"""The queue before the scheduler: lanes, ageing, and what may be reserved."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.admission import AdmissionQueue, KvReservations


@dataclass(eq=False)
class Item:
    lane: str
    submitted_s: float
    kv_tokens: int = 1


items = st.lists(
    st.builds(Item, st.sampled_from(["interactive", "batch"]), st.floats(0, 100)), max_size=12
)


@given(items, st.floats(0, 200))
def test_lanes_keep_their_order_and_age(waiting, now_s):
    queue = AdmissionQueue(ageing_s=30.0)
    for item in sorted(waiting, key=lambda item: item.submitted_s):
        queue.push(item)
    left, overtaken = [], False
    while (head := queue.head(now_s)) is not None:
        batch = [i for i in queue.items() if i.lane == "batch"]
        interactive = [i for i in queue.items() if i.lane == "interactive"]
        aged = bool(batch) and now_s - batch[0].submitted_s >= 30.0 and not overtaken
        assert head is (batch[0] if aged or not interactive else interactive[0])
        overtaken |= aged and bool(interactive)
        queue.admit(head, now_s)
        left.append(head)
    assert len(left) == len(waiting)
    assert not queue.remove(Item("batch", 0.0))


def test_neither_lane_starves_when_both_are_always_full():
    queue = AdmissionQueue(ageing_s=10.0)
    for n in range(400):
        queue.push(Item("batch", 0.0))
        queue.push(Item("interactive", float(n)))
    admitted = []
    for now_s in range(200):
        head = queue.head(float(now_s))
        queue.admit(head, float(now_s))
        admitted.append(head.lane)
    assert admitted.count("batch") == 19
    batch = [at for at, lane in enumerate(admitted) if lane == "batch"]
    assert batch[0] == 10
    assert {later - earlier for earlier, later in itertools.pairwise(batch)} == {10}


@given(st.lists(st.integers(1, 60), max_size=20))
def test_reservations_never_exceed_what_is_there(sizes):
    kv = KvReservations(kv_tokens=100, slots=3)
    held = []
    for size in sizes:
        while not kv.fits(size):
            kv.give_back(*held.pop(0))
        held.append((kv.take(size), size))
        assert kv.reserved == sum(s for _, s in held) <= 100
        assert len({slot for slot, _ in held}) == len(held) <= 3


def test_who_may_not_start_lets_others_pass_for_a_while():
    queue = AdmissionQueue(ageing_s=10.0)
    sixth, others = Item("interactive", 0.0), [Item("batch", 1.0), Item("interactive", 2.0)]
    for item in (sixth, *others):
        queue.push(item)

    def may_start(item):
        return item is not sixth

    assert queue.head(3.0, may_start) is others[1]
    queue.admit(others[1], 3.0)
    assert queue.head(4.0, may_start) is others[0]
    # From then on all wait for him, so that those who run end and make room.
    assert queue.head(10.0, may_start) is sixth
    queue.admit(others[0], 4.0)
    assert queue.head(5.0, may_start) is sixth
