"""Runs the status page on an ephemeral loopback port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from overspill_edge.listen import TcpAddress, listening
from overspill_edge.ui import Session, StatusPage


class _Quiet(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The caller's own signals hold."""
        yield


async def serve_page(socket: Path, on_ready: Callable[[str], None], stop: asyncio.Event) -> None:
    """Serve until ``stop``; ``on_ready`` is told the address with its single-use code."""
    with listening(None, TcpAddress("127.0.0.1", 0)) as listeners:
        (listener,) = listeners.sockets
        port = int(listener.getsockname()[1])
        session = Session()
        page = StatusPage(socket, port, session)
        config = uvicorn.Config(
            page.app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        server = _Quiet(config)
        serving = asyncio.create_task(server.serve(sockets=list(listeners.sockets)))
        # Bound and listening: what connects now waits until it is served.
        on_ready(f"http://127.0.0.1:{port}/#{session.code}")
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        server.should_exit = True
        await serving
