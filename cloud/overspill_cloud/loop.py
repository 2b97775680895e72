"""The event loop that a node runs on: uvloop where it is installed, else the one of asyncio.

A request crosses from grpcio's thread to the loop and back many times; uvloop takes about a
quarter less for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def run(main: Coroutine[Any, Any, None]) -> None:
    """As ``asyncio.run``."""
    try:
        import uvloop
    except ImportError:  # Windows has none
        asyncio.run(main)
    else:
        uvloop.run(main)
