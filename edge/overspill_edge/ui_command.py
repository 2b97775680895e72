"""`overspill ui`: the status page in a browser, until Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import webbrowser
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from overspill.cli.common import Json, print_json
from overspill.config import load_settings
from overspill.errors import ConnectFailed
from overspill_edge.extra import needs_edge


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("ui")(ui)


def ui(
    socket: Annotated[
        Path | None, typer.Option("--socket", help="The daemon's; default: the runtime folder's.")
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address, and open nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the daemon's status page: what runs, where it ran and why, memory, cost, proofs."""
    with needs_edge():
        from overspill_edge.daemon_http import socket_of
        from overspill_edge.ui_server import serve_page

    path = socket or socket_of(load_settings())
    if not path.is_socket():
        raise ConnectFailed(f"No daemon listens at {path}.", mend="Run: overspill serve")

    def on_ready(url: str) -> None:
        _announce(url, as_json=as_json)
        if not no_browser:
            webbrowser.open(url)

    asyncio.run(_until_stopped(lambda stop: serve_page(path, on_ready, stop)))


def _announce(url: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"url": url})
        return
    typer.echo(f"{url}\nThe address works once, within two minutes. Ctrl-C ends the page.")


async def _until_stopped(serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    await serve(stop)
