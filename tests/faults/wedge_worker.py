"""``overspill.worker`` whose engine can be wedged: after SIGUSR1 its next step never ends, while
the process lives and answers whoever asks for its health."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import Any

from overspill.engines.backend import BatchRow
from overspill.engines.echo import EchoBackend
from overspill.worker import host


def main() -> None:
    """Serve until the parent is gone."""
    wedged = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: wedged.set())
    run = EchoBackend.run

    def may_hang(backend: EchoBackend, rows: Sequence[BatchRow]) -> Any:
        if wedged.is_set():
            threading.Event().wait()
        return run(backend, rows)

    EchoBackend.run = may_hang
    host.main()


if __name__ == "__main__":
    main()
