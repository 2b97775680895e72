"""A new daemon takes the place of the one that runs, and nobody who talks to either notices.

The one that runs listens on a private socket beside its own. Over it the new one gets the listening
sockets themselves (``SCM_RIGHTS``, unix(7)), so that no connection is refused at any moment:

1. ``hello``: versions are compared, and the sockets are handed over. The old one goes on serving
   while the new one loads its model.
2. ``take``: the old one lets go of its locks and goes on serving; the new one takes the locks and
   begins to accept. For a moment both do.
3. ``serving``: the old one accepts no more, tells its apps to greet again, lets its streams end,
   and exits.

Whoever breaks off before step 3 has changed nothing: the old one takes its locks back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from overspill._version import __version__
from overspill.errors import BusyError, ConnectFailed, OverspillError, VersionMismatch
from overspill_edge.peers import is_own_user, peer_of

logger = logging.getLogger(__name__)

PROTOCOL = 1
STEP_TIMEOUT_S = 10.0
MAX_LINE_BYTES = 4096
MAX_SOCKETS = 8


class Predecessor(Protocol):
    """What the daemon that runs does at each step."""

    def sockets(self) -> list[socket.socket]:
        """(1) Its listening sockets."""

    def release(self) -> None:
        """(2) Let go of the locks."""

    def take_back(self) -> None:
        """(2) Undone: the new one did not come."""

    def leave(self) -> None:
        """(3) Accept no more, let streams end."""


def handover_path(socket_path: Path) -> Path:
    """The private socket beside a daemon's own."""
    return socket_path.with_name(f"{socket_path.stem}-next{socket_path.suffix}")


@asynccontextmanager
async def offering(path: Path, predecessor: Predecessor) -> AsyncIterator[None]:
    """Wait for a new daemon while the block runs."""
    with _bound(path) as listener:
        waiting = asyncio.create_task(_wait(listener, predecessor))
        try:
            yield
        finally:
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """The private socket, 0600 from its first moment; what lies there is a crash's or the old
    one's, whose place we have taken."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        previous = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(previous)
        inode = path.lstat().st_ino
        listener.listen(1)
        listener.setblocking(False)
        try:
            yield listener
        finally:
            with suppress(FileNotFoundError):
                if path.lstat().st_ino == inode:  # and not a new one's already
                    path.unlink()


async def _wait(listener: socket.socket, predecessor: Predecessor) -> None:
    loop = asyncio.get_running_loop()
    while True:
        connection, _ = await loop.sock_accept(listener)
        with connection:
            try:
                if is_own_user(peer_of(connection)) and await _hand_over(connection, predecessor):
                    return
            except (OSError, ValueError, TimeoutError, OverspillError) as error:
                logger.warning("a new daemon came and did not stay (%s)", type(error).__name__)


async def _hand_over(connection: socket.socket, predecessor: Predecessor) -> bool:
    """True once the new one serves."""
    line = _Line(connection)
    hello = await line.read()
    if hello.get("protocol") != PROTOCOL:
        await line.write({"error": f"version {__version__} hands over by protocol {PROTOCOL}"})
        return False
    await line.write({"version": __version__, "pid": os.getpid()}, predecessor.sockets())
    if "take" not in await line.read(None):  # until its model is loaded
        return False
    predecessor.release()
    served = False
    try:
        await line.write({"released": True})
        served = "serving" in await line.read()
    finally:
        if not served:
            predecessor.take_back()
    if served:
        logger.info("handed over to process %s", hello.get("pid"))
        predecessor.leave()
    return served


@dataclass(slots=True)
class Taken:
    """What a new daemon got of the old one, and the connection for the steps that follow."""

    sockets: list[socket.socket]
    version: str
    pid: int
    _line: _Line

    async def take(self) -> None:
        """(2) Have the old one let go of its locks. Raises ``ConnectFailed``."""
        await self._said({"take": True})

    async def serving(self) -> None:
        """(3) Say that we accept."""
        await self._line.write({"serving": True})
        self.close()

    def close(self) -> None:
        """Break off, or end."""
        self._line.close()

    async def _said(self, message: dict[str, Any]) -> None:
        try:
            await self._line.write(message)
            await self._line.read()
        except (OSError, ValueError, TimeoutError) as error:
            raise ConnectFailed(
                f"The daemon that runs (process {self.pid}) went away while it handed over.",
                mend="Start again without --upgrade.",
            ) from error


async def take_over(socket_path: Path) -> Taken | None:
    """(1) What the daemon at ``socket_path`` hands over; None where none runs.

    Raises ``VersionMismatch`` for one that hands over in another way, and ``BusyError`` for one
    that does not answer.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    line = _Line(connection)
    try:
        await loop.sock_connect(connection, str(handover_path(socket_path)))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    try:
        if not is_own_user(peer_of(connection)):
            raise ConnectionRefusedError("another user's")
        await line.write({"protocol": PROTOCOL, "version": __version__, "pid": os.getpid()})
        told = await line.read()
    except (OSError, ValueError, TimeoutError) as error:
        line.close()
        raise BusyError(
            "The daemon that runs hands nothing over.", mend="Stop it first."
        ) from error
    if "error" in told:
        line.close()
        raise VersionMismatch(
            f"The daemon that runs cannot hand over: {told['error']}.",
            mend="Stop it, and start this one.",
        )
    for one in line.sockets:
        one.setblocking(False)
        one.set_inheritable(False)
    return Taken(line.sockets, str(told.get("version")), int(told.get("pid", 0)), line)


class _Line:
    """JSON documents, one a line, with sockets beside the first."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""
        self.sockets: list[socket.socket] = []

    def close(self) -> None:
        self._connection.close()

    async def write(
        self, message: dict[str, Any], sockets: list[socket.socket] | None = None
    ) -> None:
        data = json.dumps(message).encode() + b"\n"
        if sockets:
            # A line is far smaller than a socket's buffer: it goes at once, or the peer is stuck.
            sent = socket.send_fds(self._connection, [data], [one.fileno() for one in sockets])
            data = data[sent:]
        await asyncio.get_running_loop().sock_sendall(self._connection, data)

    async def read(self, timeout_s: float | None = STEP_TIMEOUT_S) -> dict[str, Any]:
        """The next document. Raises ``TimeoutError``, ``OSError`` at the end, ``ValueError``."""
        async with asyncio.timeout(timeout_s):
            while b"\n" not in self._rest:
                await self._readable()
                data, descriptors, _, _ = socket.recv_fds(
                    self._connection, MAX_LINE_BYTES, MAX_SOCKETS
                )
                self.sockets += [socket.socket(fileno=one) for one in descriptors]
                self._rest += data
                if not data or len(self._rest) > MAX_LINE_BYTES:
                    raise ConnectionResetError("the other side left")
        line, _, self._rest = self._rest.partition(b"\n")
        document = json.loads(line)
        if not isinstance(document, dict):
            raise ValueError("no document")
        return document

    async def _readable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._connection, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._connection)
