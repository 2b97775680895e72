"""Garbage collection in a process of our own.

Python looks for cycles after every 700 new objects. A token on its way through an event loop is
some dozens of them, all gone by themselves a moment later.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG_OBJECTS: Final = 10_000


def collect_less() -> None:
    """Look for cycles after ``YOUNG_OBJECTS`` new objects. For a process that is ours alone: an app
    that imports the SDK chooses for itself."""
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
