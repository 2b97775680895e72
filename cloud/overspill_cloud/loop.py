"""The event loop that a node runs on: uvloop where there is one, else asyncio's.

A request crosses from grpcio's thread to the loop and back many times; uvloop takes about a
quarter less for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from overspill.config import leave_forks_alone
from overspill.garbage import collect_less


def run(main: Coroutine[Any, Any, None]) -> None:
    """As ``asyncio.run``."""
    run_it: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
    with suppress(ImportError):  # Windows has none
        import uvloop

        leave_forks_alone()  # it starts programs by a fork, where asyncio's way is none
        run_it = uvloop.run
    collect_less()
    # Outside of the block: what main raises has nothing to do with what is installed.
    run_it(main)
