"""What Python's collector and the C library's allocator do in a process of our own.

An app that imports the SDK chooses for itself.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from typing import Final

YOUNG_OBJECTS: Final = 10_000
CALLS_YOUNG_OBJECTS: Final = 1_000
"""For who serves gRPC: each of its calls leaves a cycle behind, which holds all that the call read.
Looked for after every 10,000 objects, 4 MB of them lay about at any time."""
ARENAS: Final = 2
_M_ARENA_MAX: Final = -8  # malloc.h of glibc


def collect_less(young_objects: int = YOUNG_OBJECTS) -> None:
    """Look for cycles after so many new objects: Python does after every 700 (3.11), and a token on
    its way through an event loop is some dozens, all gone by themselves a moment later."""
    gc.set_threshold(young_objects, *gc.get_threshold()[1:])


def keep_what_is_there() -> None:
    """Leave what a process has once it has started out of every later look for cycles."""
    gc.collect()
    gc.freeze()


def share_arenas() -> None:
    """Let all threads take their memory from the same few pools, where the C library is glibc: each
    thread's own keeps what another one could have used. To be called before threads begin."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library has no such pools
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)
