"""Builds the daemon and runs it: the only place where its parts are constructed.

In order: the sockets (so that a second daemon or a taken port is told before a model loads),
the client with its engines, the ASGI app around it, uvicorn on the sockets. The first SIGTERM
or Ctrl-C stops accepting and lets running answers end; a second one, or the end of the drain's
time, ends them with an error that says so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from overspill.client import AsyncOverspill
from overspill.config import Settings
from overspill.daemon import work_digest
from overspill.errors import UsageError
from overspill.types.chat import Privacy
from overspill_edge.access import LOOPBACK_HOSTS, AccessGuard, AccessPolicy
from overspill_edge.access_log import AccessLog
from overspill_edge.endpoint import Answerer, Service
from overspill_edge.http import routes
from overspill_edge.journal import Journal
from overspill_edge.listen import (
    MAX_SOCKET_PATH_BYTES,
    SOCKET_NAME,
    Listeners,
    TcpAddress,
    listening,
    make_private_folder,
)
from overspill_edge.local_grpc import Desk, LocalAnswerer, LocalServer, serving_local
from overspill_edge.local_handshake import LocalService, WithHandshake
from overspill_edge.peers import PeerProtocol
from overspill_edge.problems import ErrorBoundary
from overspill_edge.tickets import Tickets
from overspill_edge.tokens import TokenStore, user_tokens
from overspill_edge.work import HttpLimits, WorkRegistry

logger = logging.getLogger(__name__)

APP_NAME = "daemon"


class DaemonAnswerer(Answerer, LocalAnswerer, Protocol):
    """The part of :class:`overspill.AsyncOverspill` that a daemon uses."""


_BACKSTOP_S = 5
"""Seconds that uvicorn waits beyond the drain for what did not end when it was told to."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve. ``socket_path`` None takes the runtime folder's; ``drain_s`` in seconds.

    ``passed`` is a socket that a service manager listens on already; it takes the path's place.
    """

    settings: Settings
    socket_path: Path | None = None
    tcp: TcpAddress | None = None
    origins: tuple[str, ...] = ()
    drain_s: int = 30
    limits: HttpLimits = field(default_factory=HttpLimits)
    passed: socket.socket | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """Where a daemon that accepts requests can be reached."""

    socket: str | None
    tcp: str | None
    pid: int

    def as_dict(self) -> dict[str, Any]:
        """The document that ``overspill serve --json`` prints first."""
        return {"socket": self.socket, "tcp": self.tcp, "pid": self.pid}


def build_app(
    answerer: Answerer,
    *,
    tokens: TokenStore,
    registry: WorkRegistry,
    floor: Privacy,
    policy: AccessPolicy | None = None,
    limits: HttpLimits | None = None,
    local: LocalService | None = None,
    journal: Journal | None = None,
) -> ASGIApp:
    """The ASGI app: errors become answers, the guard decides who comes in, routes translate.

    ``local`` is where apps that greet find the gRPC socket; None where there is none.

    The inner boundary answers below the guard, so that a listed web origin can read errors too.
    """
    service = Service(
        answerer=answerer,
        floor=floor,
        registry=registry,
        limits=limits or HttpLimits(),
        started_unix=int(time.time()),
        journal=journal or Journal(),
    )
    inside = ErrorBoundary(WithHandshake(routes(service), local))
    guard = AccessGuard(inside, policy=policy or AccessPolicy(), tokens=tokens)
    return AccessLog(ErrorBoundary(guard))


class _Server(uvicorn.Server):
    """uvicorn on sockets that are bound, with our signals, telling when it accepts."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would end the process by the signal, and not with exit code 0."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        self._on_started()


def _server(app: ASGIApp, drain_s: int, on_started: Callable[[], None]) -> _Server:
    config = uvicorn.Config(
        app,
        http=PeerProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        # uvicorn's own lines hold URLs, and at its trace level headers.
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        workers=1,
        timeout_graceful_shutdown=drain_s + _BACKSTOP_S,
    )
    return _Server(config, on_started)


class Daemon:
    """One daemon, from its sockets to its end.

    ``client`` replaces the :class:`AsyncOverspill` that the settings describe.
    """

    def __init__(
        self,
        options: ServeOptions,
        *,
        client: AbstractAsyncContextManager[DaemonAnswerer] | None = None,
    ) -> None:
        self._options = options
        self._client = client or AsyncOverspill(APP_NAME, settings=options.settings, daemon="never")
        self._registry = WorkRegistry()
        self._journal = Journal()
        self._starting: asyncio.Task[Any] | None = None
        self._server: _Server | None = None
        self._local: LocalServer | None = None
        self._stopping = False

    async def run(self, on_ready: Callable[[Ready], None]) -> None:
        """Serve until :meth:`stop`. Raises what :func:`~overspill_edge.listen.listening` and the
        client raise when they cannot start."""
        self._starting = asyncio.current_task()
        try:
            path, options = _socket_path(self._options), self._options
            with listening(path, options.tcp, options.passed) as listeners:
                async with self._client as answerer:
                    await self._serve(answerer, listeners, on_ready)
        except asyncio.CancelledError:
            # Cancelled by stop() while it started, and by nobody else: a stop like any other.
            if not self._stopping or self._server is not None:
                raise

    def stop(self) -> None:
        """End the start; or stop accepting, and let running answers end within the drain's time;
        or, when called again, cut them off with an error that says so."""
        again, self._stopping = self._stopping, True
        if self._server is None:
            if self._starting is not None:
                self._starting.cancel()
            return
        self._server.should_exit = True
        self._registry.stop_listening()
        if self._local is not None:
            self._local.stop_accepting()
        if again:
            self._registry.stop_all()
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(self._options.drain_s, self._registry.stop_all)

    async def _serve(
        self, answerer: DaemonAnswerer, listeners: Listeners, on_ready: Callable[[Ready], None]
    ) -> None:
        tcp = None if listeners.tcp is None else str(listeners.tcp)
        path = None if listeners.socket_path is None else str(listeners.socket_path)
        ready = Ready(path, tcp, os.getpid())
        async with self._local_service(answerer, listeners) as local:
            app = _app_for(self._options, answerer, self._registry, local, self._journal)
            self._server = _server(app, self._options.drain_s, lambda: on_ready(ready))
            await self._server.serve(sockets=list(listeners.sockets))

    @asynccontextmanager
    async def _local_service(
        self, answerer: DaemonAnswerer, listeners: Listeners
    ) -> AsyncIterator[LocalService | None]:
        """The gRPC service for apps, drained at the end; None where there is no Unix socket."""
        path = local_socket(listeners)
        if path is None:
            yield None
            return
        settings = self._options.settings
        tickets = Tickets(user_tokens(settings.places))
        desk = Desk(answerer, tickets, self._registry, journal=self._journal)
        async with serving_local(desk, path) as self._local:
            yield LocalService(path, tickets, settings.model, work_digest(settings))
            await self._local.drained()


async def serve(options: ServeOptions, on_ready: Callable[[Ready], None]) -> int:
    """Run a :class:`Daemon` until SIGTERM or SIGINT; returns the first signal's number."""
    daemon, received = Daemon(options), list[int]()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        received.append(number)
        daemon.stop()

    # signal.signal and not loop.add_signal_handler, which Windows lacks.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: loop.call_soon_threadsafe(on_signal, n))
    await daemon.run(on_ready)
    return received[0] if received else 0


def _socket_path(options: ServeOptions) -> Path | None:
    if not hasattr(socket, "AF_UNIX"):
        if options.tcp is None or options.socket_path is not None:
            raise UsageError(
                "This system has no Unix sockets.", mend="Use --tcp 127.0.0.1:0 and a token."
            )
        return None
    if options.passed is not None:
        return Path(options.passed.getsockname())
    if options.socket_path is not None:
        return options.socket_path.expanduser().absolute()
    folder = options.settings.places.runtime
    make_private_folder(folder)
    return folder / SOCKET_NAME


def local_socket(listeners: Listeners) -> Path | None:
    """The gRPC socket beside the HTTP one; None where there is none, or no room for its name."""
    beside = listeners.socket_path
    if beside is None:
        return None
    path = beside.with_name(f"{beside.stem}-grpc{beside.suffix}")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        logger.warning("no gRPC for apps: %s is too long for a socket's path", path)
        return None
    return path


def _app_for(
    options: ServeOptions,
    answerer: Answerer,
    registry: WorkRegistry,
    local: LocalService | None,
    journal: Journal,
) -> ASGIApp:
    tokens = user_tokens(options.settings.places)
    if options.tcp is not None and not tokens.records():
        logger.warning("no token yet: nobody can use the TCP address (overspill token new)")
    return build_app(
        answerer,
        tokens=tokens,
        registry=registry,
        floor=options.settings.privacy,
        policy=AccessPolicy(hosts=LOOPBACK_HOSTS, origins=options.origins),
        limits=options.limits,
        local=local,
        journal=journal,
    )
