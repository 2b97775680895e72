"""The event loop of what has a loop of its own, in a process where others may have theirs.

grpc.aio polls for all loops of a process in one place (``PollerCompletionQueue``, in grpcio's
``aio/completion_queue.pyx.pxi``). What comes for a call that was cancelled as its loop closed is
handed over by whichever loop runs, and there "Event loop is closed" would be raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

_T = TypeVar("_T")


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """As ``asyncio.run``, on :func:`new_event_loop`."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """This platform's loop; what others hand to it once it is closed is dropped."""
    loop = asyncio.new_event_loop()
    call_soon = loop.call_soon_threadsafe

    def call_soon_threadsafe(
        callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        try:
            return call_soon(callback, *args, context=context)
        except RuntimeError:
            if not loop.is_closed():
                raise
            dropped = asyncio.Handle(callback, args, loop, context)
            dropped.cancel()
            return dropped

    # An attribute, for the class is the platform's choice; mypy has no word for that.
    loop.call_soon_threadsafe = call_soon_threadsafe  # type: ignore[method-assign,assignment]
    return loop
