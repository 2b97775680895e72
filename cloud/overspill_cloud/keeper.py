"""Keeps a node's workers running: a dead one is started again without waiting for a request, which
no balancer would send to a node that says NOT_SERVING; one that is stuck is ended first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from overspill.errors import OverspillError
from overspill.worker import WorkerEngine
from overspill_cloud import events

STALL_AFTER_S: Final = 4.0
"""A node's engine without a step for so long is not healthy: devices find another replica."""
SILENCE_S: Final = 16.0
"""So much longer it may do without before its worker is ended: a step may be slow, not dead."""


@dataclass(frozen=True, slots=True)
class KeeperOptions:
    """``look_every_s`` between looks. A worker that lives is ended when its engine did not move for
    ``give_up_after_s``, or when it did not even answer for ``silent_for_s``."""

    look_every_s: float = 0.5
    silent_for_s: float = 6.0
    give_up_after_s: float = STALL_AFTER_S + SILENCE_S


class Keeper:
    """Watches one model's worker. ``told`` hears of each restart."""

    def __init__(
        self,
        name: str,
        engine: WorkerEngine,
        told: Callable[[events.LogEvent], None],
        options: KeeperOptions | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._engine = engine
        self._told = told
        self._options = options or KeeperOptions()
        self._timer = timer
        self._ill_since_s: float | None = None

    async def keep(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._options.look_every_s)
            await self.look()

    async def look(self) -> None:
        """Ask once, and do what is due."""
        asked_s, worker = self._timer(), self._engine.supervisor
        if (await self._engine.health()).ok:
            self._ill_since_s = None
            return
        if self._ill_since_s is None:
            self._ill_since_s = asked_s
        if worker.is_running:
            options = self._options
            patience_s = options.silent_for_s if worker.is_silent else options.give_up_after_s
            if self._timer() - self._ill_since_s < patience_s:
                return
            await worker.end()
        try:
            await self._engine.start()
        except OverspillError:
            self._told(events.EngineRestarted(self._name, ok=False))
            return
        self._ill_since_s = None
        self._told(events.EngineRestarted(self._name, ok=True))
