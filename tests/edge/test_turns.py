"""Turns in front of the device: by app in rotation, positions, lanes, and nobody's place lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import BusyError
from overspill_edge.turns import TurnOptions, Turns

pytestmark = pytest.mark.anyio


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Crowd:
    """Requests that wait for turns, and the order in which they were called."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.called: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, app: str, name: str, lane: str = "interactive") -> None:
        async def one() -> None:
            async with self.turns.turn(app, name, lane):
                self.called.append(name)

        self.tasks[name] = asyncio.create_task(one())
        await asyncio.sleep(0)

    async def all_done(self) -> list[str]:
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        return self.called


async def test_a_crowd_of_one_app_does_not_keep_another_waiting():
    crowd = Crowd(Turns(TurnOptions(places=1)))
    async with crowd.turns.turn("first", "running", "interactive"):
        for number in range(5):
            await crowd.come("crowd", f"c{number}")
        await crowd.come("lone", "l0")
        await crowd.come("lone", "l1")
        assert crowd.turns.position("l0") == 1
        assert crowd.turns.position("c4") == 6
        assert crowd.turns.position("running") is None
    assert await crowd.all_done() == ["c0", "l0", "c1", "l1", "c2", "c3", "c4"]
    assert crowd.turns.queued() == []


async def test_who_leaves_loses_its_own_turn_only():
    crowd = Crowd(Turns(TurnOptions(places=1)))
    async with crowd.turns.turn("a", "running", "interactive"):
        for name in ("a1", "a2", "a3"):
            await crowd.come("a", name)
        crowd.tasks["a2"].cancel()
        await asyncio.sleep(0)
        assert [one.request_id for one in crowd.turns.queued()] == ["a1", "a3"]
    assert await crowd.all_done() == ["a1", "a3"]


async def test_who_leaves_the_moment_it_is_called_hands_its_place_on():
    crowd = Crowd(Turns(TurnOptions(places=1)))
    async with crowd.turns.turn("a", "running", "interactive"):
        await crowd.come("a", "leaves")
        await crowd.come("a", "stays")
    crowd.tasks["leaves"].cancel()  # called just now, and not yet awake
    assert await crowd.all_done() == ["stays"]
    async with crowd.turns.turn("a", "again", "interactive"):
        pass


async def test_batch_waits_for_interactive_until_it_has_aged():
    clock = Clock()
    crowd = Crowd(Turns(TurnOptions(places=1, ageing_s=10), clock=clock))
    async with crowd.turns.turn("a", "running", "interactive"):
        await crowd.come("b", "batch1", "batch")
        await crowd.come("b", "batch2", "batch")
        for name in ("i1", "i2"):
            await crowd.come("a", name)
        assert crowd.turns.position("batch1") == 2
        clock.now = 11
    assert await crowd.all_done() == ["batch1", "i1", "i2", "batch2"]


async def test_too_many_of_one_app_are_refused_and_others_are_not():
    crowd = Crowd(Turns(TurnOptions(places=1, max_waiting=2)))
    async with crowd.turns.turn("a", "running", "interactive"):
        for name in ("a1", "a2"):
            await crowd.come("a", name)
        with pytest.raises(BusyError, match="2 requests of this app"):
            async with crowd.turns.turn("a", "a3", "interactive"):
                pass
        await crowd.come("b", "b1")
    assert sorted(await crowd.all_done()) == ["a1", "a2", "b1"]


@given(
    places=st.integers(1, 3),
    comers=st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), max_size=24),
)
def test_every_place_is_given_back_and_everybody_who_stays_is_served(places, comers):
    async def play() -> None:
        crowd = Crowd(Turns(TurnOptions(places=places)))
        for number, (app, is_batch, leaves) in enumerate(comers):
            await crowd.come(app, f"{number}", "batch" if is_batch else "interactive")
            if leaves:
                crowd.tasks[f"{number}"].cancel()
        await crowd.all_done()
        stayed = {f"{n}" for n, (_, _, leaves) in enumerate(comers) if not leaves}
        assert stayed <= set(crowd.called)
        for number in range(places):  # all free again: none of these waits
            await asyncio.wait_for(crowd.turns.turn("z", f"z{number}", "batch").__aenter__(), 5)

    asyncio.run(play())
