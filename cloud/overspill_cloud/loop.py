"""The event loop that a node runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from overspill.garbage import CALLS_YOUNG_OBJECTS, collect_less, share_arenas


def run(main: Coroutine[Any, Any, None]) -> None:
    """As ``asyncio.run``, in a process that is ours alone."""
    share_arenas()
    collect_less(CALLS_YOUNG_OBJECTS)
    asyncio.run(main)
