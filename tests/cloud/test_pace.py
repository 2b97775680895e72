"""How long words gather: more while a node's loop is late, within bounds, and back again."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill_cloud.pace import LATE_S, MOST_S, TICK_S, Pace

pytestmark = pytest.mark.anyio
LEAST_S = 0.025
SECONDS = st.floats(0.0, 5.0)


@given(least_s=st.floats(0.0, 1.0), late=st.lists(SECONDS, max_size=60))
def test_words_gather_no_less_than_asked_and_no_longer_than_bearable(least_s, late):
    pace = Pace(least_s)
    for late_s in late:
        assert least_s <= pace.note(late_s) <= max(least_s, MOST_S)


@given(late=st.lists(SECONDS, max_size=60))
def test_a_node_that_keeps_up_again_gathers_as_before(late):
    pace = Pace(LEAST_S)
    seen = [pace.note(late_s) for late_s in (*late, *[0.0] * 100)]
    assert seen[-1] == LEAST_S


def test_a_late_loop_gathers_more_and_at_last_the_most():
    pace = Pace(LEAST_S)
    seen = [pace.note(2 * LATE_S) for _ in range(10)]
    assert seen == sorted(seen)
    assert seen[0] > LEAST_S
    assert seen[-1] == MOST_S


async def test_what_keeps_the_loop_busy_is_seen():
    pace = Pace(LEAST_S)
    while pace.gather_s == LEAST_S:
        time.sleep(TICK_S + 2 * LATE_S)  # noqa: ASYNC251 - a loop that is late
        await asyncio.sleep(0)
    while pace.gather_s > LEAST_S:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(TICK_S)


async def test_nobody_looks_while_nobody_asks():
    pace = Pace(LEAST_S)
    assert pace.gather_s == LEAST_S
    while pace._timer is not None:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(TICK_S)


async def test_where_words_never_gather_nobody_looks():
    pace = Pace(0.0)
    assert pace.gather_s == 0.0
    assert pace._timer is None
