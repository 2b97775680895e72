"""Waits until a thread has really ended, its native part too."""

from __future__ import annotations

import os
import sys
import threading
import time

_TICK_S = 0.001
_GRACE_S = 0.05


def join_native(thread: threading.Thread, timeout_s: float) -> None:
    """Join a thread, then wait for what C++ does at its end; returns after ``timeout_s`` anyway.

    MLX keeps Python objects in thread-local storage, and takes the GIL to free them after
    Python's own part of the thread is over. Before 3.13 ``join`` does not wait for that, and a
    process that ends at that moment aborts ("terminate called without an active exception").
    """
    until_s = time.monotonic() + timeout_s
    thread.join(timeout_s)
    if thread.is_alive() or sys.version_info >= (3, 13):
        return
    if sys.platform != "linux":
        # No portable way to see a thread that Python has let go: it needs the GIL for a moment.
        time.sleep(_GRACE_S)
        return
    task = f"/proc/self/task/{thread.native_id}"
    while os.path.exists(task) and time.monotonic() < until_s:
        time.sleep(_TICK_S)
