"""One limit on many waits."""

from __future__ import annotations

import asyncio

import pytest

from overspill.patience import Patience

pytestmark = pytest.mark.anyio


async def test_each_wait_has_the_whole_limit_and_all_have_one_timer() -> None:
    patience, loop = Patience(1.0), asyncio.get_running_loop()
    made: list[float] = []
    call_at = loop.call_at

    def counted(when, callback, *args, **options):  # type: ignore[no-untyped-def]
        if callback == patience._look:
            made.append(when)
        return call_at(when, callback, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "call_at", counted)
        for number in range(24):  # together longer than the limit
            assert await patience.wait(asyncio.sleep(0.05, number)) == number
    assert 2 <= len(made) <= 4
    patience.stop()


async def test_a_wait_that_takes_too_long_ends_and_the_next_one_may_begin() -> None:
    patience = Patience(0.02)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await patience.wait(asyncio.Event().wait())
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
    assert await patience.wait(asyncio.sleep(0, "fine")) == "fine"
    patience.stop()


@pytest.mark.parametrize("late", [False, True], ids=["before the limit", "with the limit"])
async def test_who_cancels_from_outside_gets_his_way(late: bool) -> None:
    patience = Patience(0.02 if late else 60.0)
    waits = asyncio.create_task(patience.wait(asyncio.Event().wait()))
    await asyncio.sleep(0)
    if late:
        patience._until_s = 0.0
        patience._look(asyncio.get_running_loop())
    waits.cancel()
    await asyncio.wait({waits})
    assert waits.cancelled()
    patience.stop()


async def test_what_fails_by_itself_is_raised_as_it_is() -> None:
    async def fail() -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        await Patience(60.0).wait(fail())


async def test_nobody_is_cancelled_once_the_waits_are_over() -> None:
    patience = Patience(0.01)
    await patience.wait(asyncio.sleep(0))
    await asyncio.sleep(0.05)
