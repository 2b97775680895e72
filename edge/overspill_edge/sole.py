"""One daemon for each user: a lock in the state folder, and beside it who holds it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from overspill._version import __version__
from overspill.config import Places
from overspill.errors import BusyError
from overspill_edge.listen import make_private_folder

LOCK_NAME = "daemon.lock"
RECORD_NAME = "daemon.json"


@dataclass(frozen=True, slots=True)
class Holder:
    """The daemon that runs; times are Unix seconds."""

    pid: int
    version: str
    socket: str | None
    tcp: str | None
    since_unix: int

    def __str__(self) -> str:
        where = self.socket or self.tcp
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_unix))
        return f"process {self.pid}, version {self.version}, at {where}, since {since}"


class SoleDaemon:
    """The user's lock. Raises ``ConfigurationError`` for a state folder that is not private."""

    def __init__(self, places: Places) -> None:
        make_private_folder(places.state)
        self._record = places.state / RECORD_NAME
        self._lock = FileLock(places.state / LOCK_NAME, mode=0o600)

    def acquire(self, timeout_s: float = 0.0) -> None:
        """Take the lock. Raises ``BusyError``, which says who has it."""
        try:
            self._lock.acquire(timeout=timeout_s)
        except Timeout:
            holder = read_holder(self._record)
            raise BusyError(
                f"A daemon of this user already runs ({holder or 'it is just starting'}).",
                mend="Use it, stop it, or replace it with: overspill serve --upgrade",
            ) from None

    def tell(self, socket: str | None, tcp: str | None) -> None:
        """Say who has it."""
        holder = Holder(os.getpid(), __version__, socket, tcp, int(time.time()))
        beside = self._record.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(asdict(holder)), encoding="utf-8")
        beside.replace(self._record)

    def release(self) -> None:
        """Give the lock back. May be called twice."""
        self._lock.release()


def read_holder(record: Path) -> Holder | None:
    """Who said so last; None where nobody did, or it cannot be read."""
    try:
        return Holder(**json.loads(record.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
