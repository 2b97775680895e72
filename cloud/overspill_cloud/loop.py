"""The event loop that a node runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from overspill.garbage import collect_less


def run(main: Coroutine[Any, Any, None]) -> None:
    """As ``asyncio.run``, in a process that is ours alone."""
    collect_less()
    asyncio.run(main)
