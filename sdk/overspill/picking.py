"""Which replica is asked next: the preferred one that may be, else the first that is back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import anyio

from overspill.errors import BusyError
from overspill.replica import Replica

LOOK_AGAIN_S = 0.05
REST_S = 1.0
"""What a caller is told to wait who was refused here: a circuit's first pause."""


async def pick(
    known: Callable[[], Sequence[Replica]], failed: Sequence[Replica], *, wait_s: float
) -> Replica:
    """The preferred one of the ``known`` replicas that did not fail this request yet, if any.

    Where nodes of a fleet are gone, and those that are left rest, one of them is about to come
    back, or to be replaced: it is waited for, up to ``wait_s`` seconds. A fleet that has no room
    says so at once, and so does a node that stands alone. Raises ``BusyError``; nothing is sent
    then.
    """
    replicas = known()
    untried = [replica for replica in replicas if replica not in failed]
    for replica in untried or replicas:
        if replica.guard.allow():
            return replica
    resting = [replica for replica in replicas if not replica.guard.is_gone]
    is_awaited = 1 < len(replicas) != len(resting)
    until_s = time.monotonic() + (wait_s if is_awaited else 0.0)
    while time.monotonic() < until_s:
        await anyio.sleep(LOOK_AGAIN_S)
        for replica in known():
            if replica not in resting and replica.guard.allow():
                return replica
    raise BusyError(
        f"{_named(replicas)} refused or failed too much lately to be asked now.",
        mend="Try again in a moment.",
        retry_after_s=REST_S,
        reason="THROTTLED",
    )


def _named(replicas: Sequence[Replica]) -> str:
    first, others = replicas[0].address, len(replicas) - 1
    return first if not others else f"{first} and {others} more"
