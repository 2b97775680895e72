"""What can be chosen about a worker process."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from overspill.transport.local.options import LocalOptions

Role = Literal["engine", "embedder"]
"""What a worker serves."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """``max_deaths`` workers may die within ``deaths_window_s`` before no new one is started, at
    work or while they load; a model that is refused is no death.

    ``loopback`` uses TCP on 127.0.0.1 instead of a Unix socket: always so on Windows.
    ``gather_s`` is the engine's ``SchedulerOptions.gather_s`` over there: a message of several
    tokens costs both processes what a message of one does, and they take it from the cores that
    compute. Twenty-five messages a second still read as a flow.
    """

    max_deaths: int = 5
    deaths_window_s: float = 60.0
    stop_timeout_s: float = 5.0
    health_timeout_s: float = 3.0
    loopback: bool = os.name == "nt"
    local: LocalOptions = field(default_factory=LocalOptions)
    gather_s: float = 0.04
