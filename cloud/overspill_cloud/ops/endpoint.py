"""The ops port: ``/metrics``, ``/livez`` and ``/readyz`` in plain HTTP, and nothing else.

It answers from a thread of its own and asks the node's loop for everything, so that a loop which
no longer turns is seen as one: 503, on every path.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.exposition import ThreadingWSGIServer

from overspill.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

ASK_TIMEOUT_S: Final = 3.0
_T = TypeVar("_T")


class OpsEndpoint:
    """The three pages. ``figures`` gives the exposition, ``is_ready`` whether streams are taken."""

    def __init__(
        self,
        figures: Callable[[], Awaitable[bytes]],
        is_ready: Callable[[], Awaitable[bool]],
    ) -> None:
        self._figures = figures
        self._is_ready = is_ready
        self._loop = asyncio.get_running_loop()

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """One request."""
        if environ["REQUEST_METHOD"] != "GET":
            return _text(start, "405 Method Not Allowed", b"GET only\n")
        try:
            return self._page(environ["PATH_INFO"], start)
        except TimeoutError:
            return _text(start, "503 Service Unavailable", b"the node does not move\n")

    def _page(self, path: str, start: StartResponse) -> Iterable[bytes]:
        if path == "/metrics":
            body = self._ask(self._figures())
            start("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
            return [body]
        if path == "/livez":
            self._ask(asyncio.sleep(0))
            return _text(start, "200 OK", b"ok\n")
        if path == "/readyz":
            if self._ask(self._is_ready()):
                return _text(start, "200 OK", b"ok\n")
            return _text(start, "503 Service Unavailable", b"not serving\n")
        return _text(start, "404 Not Found", b"/metrics, /livez, /readyz\n")

    def _ask(self, question: Awaitable[_T]) -> _T:
        """What the loop answers. Raises ``TimeoutError``."""

        async def asked() -> _T:
            return await question

        future: Future[_T] = asyncio.run_coroutine_threadsafe(asked(), self._loop)
        try:
            return future.result(ASK_TIMEOUT_S)
        except TimeoutError:
            future.cancel()
            raise


def _text(start: StartResponse, status: str, body: bytes) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [body]


def parse_ops_address(text: str, open_ports: Iterable[int]) -> tuple[str, int]:
    """``HOST:PORT`` of the ops port; beyond loopback only where the port is meant to be open.

    Raises ``UsageError`` or ``ConfigurationError``.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"'{text}' is no address.", mend="Give --metrics HOST:PORT.")
    try:
        is_near = ip_address(host.strip("[]")).is_loopback
    except ValueError:
        raise UsageError(
            f"'{host}' is no IP address.", mend="Give --metrics 127.0.0.1:PORT."
        ) from None
    if not is_near and int(port) not in open_ports:
        raise ConfigurationError(
            f"Metrics on {text} could be read from other machines.",
            mend=f"Use 127.0.0.1, or say that it is meant: --open-port {port}.",
        )
    return host.strip("[]"), int(port)


class _Quiet(WSGIRequestHandler):
    timeout = 5.0

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who looks at figures is nobody's business."""


@asynccontextmanager
async def serving_ops(address: tuple[str, int], endpoint: OpsEndpoint) -> AsyncGenerator[str]:
    """The pages on that address within the block; gives the one it got (port 0: a free one).

    Raises ``ConfigurationError`` where it cannot be had.
    """
    host, port = address
    kind = _IPv6 if ":" in host else ThreadingWSGIServer
    try:
        server = make_server(host, port, endpoint, server_class=kind, handler_class=_Quiet)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot show metrics on {host}:{port}: {(error.strerror or str(error)).lower()}.",
            mend="Give another --metrics HOST:PORT (port 0 takes a free one).",
        ) from error
    thread = threading.Thread(
        target=server.serve_forever, args=(0.05,), name="overspill-ops", daemon=True
    )
    thread.start()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"{shown}:{server.server_port}"
    finally:
        await asyncio.to_thread(server.shutdown)
        thread.join()
        server.server_close()


class _IPv6(ThreadingWSGIServer):
    import socket as _socket

    address_family = _socket.AF_INET6
