"""How long is waited for each of many things, with one timer for all of them.

``asyncio.timeout`` makes a timer for each wait and cancels it again; around every token of a stream
that took longer than to open the token's frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

_T = TypeVar("_T")


class Patience:
    """Ends a wait that takes ``limit_s`` seconds by ``TimeoutError``. One wait at a time, each in
    any task of one loop; a cancellation from outside stays one."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._waiter: asyncio.Task[Any] | None = None
        self._until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    async def wait(self, what: Awaitable[_T]) -> _T:
        """What ``what`` gives. Raises ``TimeoutError`` when that takes too long."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("wait() is for tasks")
        before = task.cancelling()
        self._until_s = loop.time() + self._limit_s
        self._is_over = False
        self._waiter = task
        if self._timer is None:
            self._timer = loop.call_at(self._until_s, self._look, loop)
        try:
            return await what
        except asyncio.CancelledError:
            # As asyncio's own: who else cancelled this task meanwhile still gets his way.
            if self._is_over and task.cancelling() - 1 <= before:
                raise TimeoutError from None
            raise
        finally:
            self._waiter = None
            if self._is_over:
                task.uncancel()

    def stop(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Time may be over for this wait; if it is a later one, look again then."""
        self._timer = None
        if self._waiter is None:
            return
        if loop.time() < self._until_s:
            self._timer = loop.call_at(self._until_s, self._look, loop)
        else:
            self._is_over = True
            self._waiter.cancel()
