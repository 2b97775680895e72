"""How far a model is loaded, from the runtime that reads it to whoever waits for it.

A backend is opened by a call that returns when it is done. What it tells on the way goes to the
listener around that call, on the same thread; without one it is told to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

OnLoaded = Callable[[float], None]
"""Takes the share of the weights that is loaded, 0 to 1; called on the thread that loads."""

_listener: ContextVar[OnLoaded | None] = ContextVar("overspill_on_loaded", default=None)


@contextmanager
def telling_loaded(to: OnLoaded | None) -> Iterator[None]:
    """What is loaded in the block is told to ``to``."""
    before = _listener.set(to)
    try:
        yield
    finally:
        _listener.reset(before)


def on_loaded() -> OnLoaded:
    """Who is told, for a runtime that calls back from code which knows no contexts."""
    return _listener.get() or _nobody


def _nobody(share: float) -> None:
    """Whoever loads for itself alone needs no telling."""
