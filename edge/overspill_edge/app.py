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
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from overspill.client import AsyncOverspill
from overspill.config import Settings
from overspill.daemon import work_digest
from overspill.errors import UsageError
from overspill.transport.loopback import HAS_UNIX_SOCKETS
from overspill.types.chat import Privacy
from overspill_edge.access import LOOPBACK_HOSTS, AccessGuard, AccessPolicy
from overspill_edge.access_log import AccessLog
from overspill_edge.device import SharedDevice
from overspill_edge.endpoint import Answerer, Service
from overspill_edge.handover import handover_path, offering
from overspill_edge.http import routes
from overspill_edge.journal import Journal
from overspill_edge.leaving import Leaving
from overspill_edge.listen import (
    MAX_SOCKET_PATH_BYTES,
    SOCKET_NAME,
    Listeners,
    TcpAddress,
    make_private_folder,
)
from overspill_edge.local_grpc import Desk, LocalAnswerer, LocalServer, serving_local
from overspill_edge.local_handshake import Handshake, LocalService
from overspill_edge.loopback import offered
from overspill_edge.peers import PeerProtocol
from overspill_edge.place import Place, having_place
from overspill_edge.problems import ErrorBoundary
from overspill_edge.tickets import Tickets
from overspill_edge.tokens import TokenStore, user_tokens
from overspill_edge.work import HttpLimits, WorkRegistry

logger = logging.getLogger(__name__)

APP_NAME = "daemon"


class DaemonAnswerer(Answerer, LocalAnswerer, Protocol):
    """The part of :class:`overspill.AsyncOverspill` that a daemon uses."""


LEAVING_S = 3600
"""Seconds that the streams of a daemon which handed over may go on."""
_IDLE_GRACE_S = 1.0
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
    replaceable: bool = False
    """A new daemon can take its place; in the default place it is the user's only one."""
    upgrade: bool = False
    """Take the place of the one that runs."""
    loopback: bool = not HAS_UNIX_SOCKETS
    """Apps come over loopback, found by a private file: where there are no Unix sockets."""

    @property
    def address(self) -> TcpAddress | None:
        """Where to listen besides, or at all."""
        return self.tcp or (TcpAddress("127.0.0.1", 0) if self.loopback else None)

    @property
    def hands_over(self) -> bool:
        """A service manager's socket stays when the daemon is restarted: nothing to hand over."""
        return self.replaceable and self.passed is None


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
    device: SharedDevice | None = None,
) -> ASGIApp:
    """The ASGI app: errors become answers, the guard decides who comes in, routes translate.

    ``local`` is where apps that greet find the gRPC socket; None where there is none. ``device`` is
    the model that the daemon looks after.

    The inner boundary answers below the guard, so that a listed web origin can read errors too.
    """
    device = device or SharedDevice()
    service = Service(
        answerer=answerer,
        floor=floor,
        registry=registry,
        limits=limits or HttpLimits(),
        started_unix=int(time.time()),
        journal=journal or Journal(),
        loading=device.loading,
        device=device,
    )
    inside = ErrorBoundary(Handshake(routes(service), local))
    guard = AccessGuard(inside, policy=policy or AccessPolicy(), tokens=tokens)
    return AccessLog(ErrorBoundary(guard))


class _Server(uvicorn.Server):
    """uvicorn on sockets that are bound, with our signals, telling when it accepts."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._on_started = on_started

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would end the process by the signal, and not with exit code 0."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        await self._on_started()

    def accept_no_more(self) -> asyncio.Task[None]:
        """Answer who is connected, and end once nobody is, or nobody idle."""
        for server in self.servers:
            server.close()
        return asyncio.create_task(self._end_when_answered())

    async def _end_when_answered(self) -> None:
        """What was accepted just now gets the time to say something; who is kept alive is told
        with its next answer that it was the last, or goes when uvicorn lets go of it."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        end = began + self.config.timeout_keep_alive + _IDLE_GRACE_S
        # uvicorn keeps a plain set of connections, and tells nobody when it is empty.
        while self._is_awaited(loop.time() - began) and loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        self.config.timeout_graceful_shutdown = LEAVING_S + _BACKSTOP_S
        self.should_exit = True

    def _is_awaited(self, for_s: float) -> bool:
        return bool(self.server_state.connections) or for_s < _IDLE_GRACE_S


def _server(app: ASGIApp, drain_s: int, on_started: Callable[[], Awaitable[None]]) -> _Server:
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

    ``client`` replaces the :class:`AsyncOverspill` that the settings describe; ``device`` is what
    its engine was opened by, where the daemon is to look after that.
    """

    def __init__(
        self,
        options: ServeOptions,
        *,
        client: AbstractAsyncContextManager[DaemonAnswerer] | None = None,
        device: SharedDevice | None = None,
    ) -> None:
        settings = options.settings
        self._options = options
        self._device = device or SharedDevice.of(settings)
        self._client = client or AsyncOverspill(
            APP_NAME, settings=settings, daemon="never", open_engine=self._device.open
        )
        self._registry = WorkRegistry()
        self._journal = Journal()
        self._starting: asyncio.Task[Any] | None = None
        self._server: _Server | None = None
        self._local: LocalServer | None = None
        self._stopping = False
        self._place: Place | None = None
        self._app: Leaving | None = None
        self._leaving: asyncio.Task[None] | None = None

    async def run(self, on_ready: Callable[[Ready], None]) -> None:
        """Serve until :meth:`stop`. Raises what :func:`~overspill_edge.listen.listening` and the
        client raise when they cannot start."""
        self._starting = asyncio.current_task()
        try:
            options = self._options
            async with (
                having_place(
                    _socket_path(options),
                    options.address,
                    options.settings.places,
                    sole=options.replaceable and options.socket_path is None,
                    upgrade=options.upgrade,
                    passed=options.passed,
                ) as self._place,
                self._client as answerer,
            ):
                await self._serve(answerer, self._place, on_ready)
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

    # The steps of a handover to the next daemon; see :mod:`overspill_edge.handover`. ------------

    def sockets(self) -> list[socket.socket]:
        """(1) The listening ones."""
        return [] if self._place is None else self._place.sockets()

    def release(self) -> None:
        """(2) The locks are free."""
        if self._place is not None:
            self._place.release_locks()

    def take_back(self) -> None:
        """(2) The next one did not come: the locks are ours again."""
        if self._place is not None:
            self._place.take_locks()

    def leave(self) -> None:
        """(3) Accept no more; what runs goes on to its end."""
        self._stopping = True
        self._registry.stop_listening()
        if self._app is not None:
            self._app.is_leaving = True
        if self._server is not None:
            self._leaving = self._server.accept_no_more()
        if self._local is not None:
            self._local.hand_over()
        asyncio.get_running_loop().call_later(LEAVING_S, self._registry.stop_all)

    # --------------------------------------------------------------------------------------------

    async def _serve(
        self, answerer: DaemonAnswerer, place: Place, on_ready: Callable[[Ready], None]
    ) -> None:
        listeners = place.listeners
        tcp = None if listeners.tcp is None else str(listeners.tcp)
        path = None if listeners.socket_path is None else str(listeners.socket_path)
        ready = Ready(path, tcp, os.getpid())
        async with self._local_service(answerer, place) as local, AsyncExitStack() as stack:

            async def started() -> None:
                await place.serving()
                if self._options.hands_over and listeners.socket_path is not None:
                    beside = handover_path(listeners.socket_path)
                    await stack.enter_async_context(offering(beside, self))
                on_ready(ready)

            self._app = Leaving(
                _app_for(
                    self._options, answerer, self._registry, local, self._journal, self._device
                )
            )
            self._server = _server(self._app, self._options.drain_s, started)
            await place.claim()
            await self._server.serve(sockets=list(listeners.sockets))

    @asynccontextmanager
    async def _local_service(
        self, answerer: DaemonAnswerer, place: Place
    ) -> AsyncIterator[LocalService | None]:
        """The gRPC service for apps, drained at the end; None where they cannot come in."""
        path = local_socket(place.listeners, is_taken_over=place.is_taken_over)
        tcp = place.listeners.tcp if self._is_found_by_file else None
        if path is None and tcp is None:
            yield None
            return
        settings = self._options.settings
        tokens = user_tokens(settings.places)
        tickets = Tickets(tokens)
        desk = Desk(answerer, tickets, self._registry, journal=self._journal)
        with offered(settings.places, tokens, tcp) if tcp else nullcontext() as loopback:
            async with serving_local(desk, path) as self._local:
                work = work_digest(settings)
                yield LocalService(self._local.address, tickets, settings.model, work, loopback)
                await self._local.drained()

    @property
    def _is_found_by_file(self) -> bool:
        """The user's own daemon; an app's is found by nobody else."""
        return self._options.loopback and self._options.replaceable


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
    if options.loopback:
        if options.socket_path is not None:
            raise UsageError("This system has no Unix sockets.", mend="Leave out --socket.")
        return None
    if options.passed is not None:
        return Path(options.passed.getsockname())
    if options.socket_path is not None:
        return options.socket_path.expanduser().absolute()
    folder = options.settings.places.runtime
    make_private_folder(folder)
    return folder / SOCKET_NAME


def local_socket(listeners: Listeners, *, is_taken_over: bool = False) -> Path | None:
    """The gRPC socket beside the HTTP one; None where there is none, or no room for its name. A
    daemon that took over has another name for it than the one before, which ends its streams."""
    beside = listeners.socket_path
    if beside is None:
        return None
    mark = f"-{secrets.token_hex(3)}" if is_taken_over else ""
    path = beside.with_name(f"{beside.stem}-grpc{mark}{beside.suffix}")
    if not is_taken_over:
        for left_over in beside.parent.glob(f"{beside.stem}-grpc-*{beside.suffix}"):
            left_over.unlink(missing_ok=True)
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
    device: SharedDevice,
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
        device=device,
    )
