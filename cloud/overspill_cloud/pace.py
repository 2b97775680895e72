"""How long words gather before a frame of them goes, by how late everything at this node is.

A frame costs a node the same for one token as for ten. Where its event loop cannot keep up, frames
of more tokens each leave it time for what waits: other streams' tokens, and requests that come,
which would go unanswered until their clients gave the node up.
"""

from __future__ import annotations

import asyncio
from typing import Final

MOST_S: Final = 0.25
"""Longer than that nobody waits for words that are there."""
LATE_S: Final = 0.02
"""A loop that comes so late to what is due does not keep up; half of that is keeping up."""
TICK_S: Final = 0.05
_FASTER, _SLOWER = 0.9, 1.5


class Pace:
    """``gather_s`` seconds at least, more while the loop is late; with 0 nothing ever gathers.

    Belongs to the event loop on which it is asked. Looks at the loop only while it is asked.
    """

    def __init__(self, gather_s: float) -> None:
        self._least_s = self._now_s = gather_s
        self._timer: asyncio.TimerHandle | None = None
        self._is_asked = False

    @property
    def gather_s(self) -> float:
        """For how long words gather now."""
        self._is_asked = True
        if self._timer is None and self._least_s > 0:
            self._look_later()
        return self._now_s

    def note(self, late_s: float) -> float:
        """The loop came so late to what was due; returns for how long words gather from now on."""
        if late_s > LATE_S:
            self._now_s = min(self._now_s * _SLOWER, max(MOST_S, self._least_s))
        elif late_s < LATE_S / 2:
            self._now_s = max(self._now_s * _FASTER, self._least_s)
        return self._now_s

    def _look_later(self) -> None:
        self._is_asked = False
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TICK_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            self.note(loop.time() - timer.when())
        if self._is_asked or self._now_s > self._least_s:
            self._look_later()
