"""A daemon's place: its sockets and locks, bound afresh or taken over from the one that runs."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from overspill.config import Places
from overspill_edge.handover import STEP_TIMEOUT_S, Taken, take_over
from overspill_edge.listen import Listeners, TcpAddress, adopted, listening
from overspill_edge.sole import SoleDaemon


@dataclass(slots=True)
class Place:
    """What a daemon holds. ``sole`` None is a daemon beside the user's own: an app's."""

    listeners: Listeners
    sole: SoleDaemon | None
    _taken: Taken | None

    @property
    def is_taken_over(self) -> bool:
        """Whether another daemon had it before."""
        return self._taken is not None

    async def claim(self) -> None:
        """Have the locks, before anything is accepted. Raises ``ConnectFailed``, ``BusyError``."""
        if self._taken is not None:
            await self._taken.take()
            self.take_locks()

    async def serving(self) -> None:
        """Tell the daemon before us that we accept, and the next one who we are."""
        if self._taken is not None:
            await self._taken.serving()
        if self.sole is not None:
            tcp = self.listeners.tcp
            self.sole.tell(_text(self.listeners.socket_path), _text(tcp))

    def take_locks(self) -> None:
        """Both locks, which somebody gave back just now. Raises ``BusyError``."""
        if self.listeners.ownership is not None:
            self.listeners.ownership.acquire(STEP_TIMEOUT_S)
        if self.sole is not None:
            self.sole.acquire(STEP_TIMEOUT_S)

    def release_locks(self) -> None:
        """For the daemon after us."""
        if self.listeners.ownership is not None:
            self.listeners.ownership.release()
        if self.sole is not None:
            self.sole.release()

    def sockets(self) -> list[socket.socket]:
        """The listening ones."""
        return list(self.listeners.sockets)


@asynccontextmanager
async def having_place(
    path: Path | None,
    tcp: TcpAddress | None,
    places: Places,
    *,
    sole: bool,
    upgrade: bool,
    passed: socket.socket | None = None,
) -> AsyncIterator[Place]:
    """A place while the block runs; with ``upgrade`` that of the daemon that runs, if one does.
    ``passed`` is a service manager's socket at ``path``.

    Raises as :func:`~overspill_edge.listen.listening` and
    :func:`~overspill_edge.handover.take_over`, and ``BusyError`` that says who runs.
    """
    lock = SoleDaemon(places) if sole else None
    taken = await take_over(path) if upgrade and path is not None else None
    try:
        if taken is not None and path is not None:
            with adopted(path, taken.sockets, tcp) as listeners:
                yield Place(listeners, lock, taken)
            return
        if lock is not None:
            lock.acquire()
        with listening(path, tcp, passed) as listeners:
            yield Place(listeners, lock, None)
    finally:
        if taken is not None:
            taken.close()
        if lock is not None:
            lock.release()


def _text(value: object) -> str | None:
    return None if value is None else str(value)
