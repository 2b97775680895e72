"""A loop of one's own: what comes for it after its end disturbs nobody."""

from __future__ import annotations

import asyncio
import threading

import pytest

from overspill.event_loop import new_event_loop, run


def test_what_comes_after_the_end_is_dropped():
    loop, came = new_event_loop(), []
    loop.close()
    assert loop.call_soon_threadsafe(came.append, 1).cancelled()
    assert came == []


def test_before_the_end_a_call_from_another_thread_arrives():
    loop, came = new_event_loop(), []

    def call() -> None:
        loop.call_soon_threadsafe(came.append, 1)
        loop.call_soon_threadsafe(loop.stop)

    threading.Timer(0.01, call).start()
    loop.run_forever()
    loop.close()
    assert came == [1]


def test_another_error_is_not_hidden():
    loop = new_event_loop()
    loop.set_debug(True)

    async def ask() -> None:
        with pytest.raises(TypeError):
            loop.call_soon_threadsafe("not a function")

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(ask())


def test_run_runs_on_such_a_loop_and_closes_it():
    loops = []

    async def look() -> str:
        loops.append(asyncio.get_running_loop())
        return "done"

    assert run(look()) == "done"
    assert loops[0].is_closed()
    assert loops[0].call_soon_threadsafe(print, "late").cancelled()
