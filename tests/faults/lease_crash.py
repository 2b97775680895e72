"""A replica that is killed between reserve and settle, again and again.

    python lease_crash.py STATE TIMES SEED [URL]

Each time a child opens the store, reserves a lease, writes none, some or all of its usage, and is
killed with SIGKILL: sometimes while it writes. Prints when it is done.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import sys
from pathlib import Path

from overspill_cloud.limits import QuotaTerms
from overspill_cloud.store import Lease, Store, UsageEntry

ACCOUNT = b"q" * 32
NOW = 1_000_000
LIMIT = 10**9
TERMS = QuotaTerms(lease_ttl_s=60)


def main() -> None:
    """Command line."""
    state, times, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    url = sys.argv[4] if len(sys.argv) > 4 else None
    draw = random.Random(seed)
    for _ in range(times):
        # An engine holds locks and sockets: each child opens its own.
        child_seed = draw.randrange(1 << 30)
        child = os.fork()
        if child == 0:
            replica(Store(state, url), random.Random(child_seed))
        os.waitpid(child, 0)
    print("done")


def replica(store: Store, draw: random.Random) -> None:
    """Reserve, spend a part, die."""
    lease = store.lease(ACCOUNT, LIMIT, draw.randrange(1, 5000), TERMS, NOW)
    assert isinstance(lease, Lease)
    if draw.random() < 0.3:  # in the midst of a commit, or before it, or after
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, draw.random() * 0.01)
    for _ in range(draw.randrange(4)):
        store.append_usage(
            UsageEntry(
                secrets.token_bytes(16),
                0,
                ACCOUNT,
                NOW,
                "m",
                draw.randrange(500),
                draw.randrange(500),
                "stop",
                ACCOUNT,
                TERMS.period_of(NOW),
                lease.lease_id,
            )
        )
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
