"""A loop of one's own: what comes for it after its end disturbs nobody."""

from __future__ import annotations

import asyncio
import threading

import pytest

from overspill.event_loop import new_event_loop


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
