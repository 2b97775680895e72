"""The daemon inside an app: its HTTP interface over a client that is open already.

Found by the entry point ``overspill.daemon``, since the SDK knows nothing of this package. The
models stay the app's own, loaded once, under its policy and its budget.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from overspill.client import AsyncOverspill
from overspill.transport.loopback import HAS_UNIX_SOCKETS
from overspill_edge.app import Daemon, Ready, ServeOptions
from overspill_edge.listen import TcpAddress
from overspill_edge.tokens import Scope, user_tokens

_TOKEN_LIFE_S = 24 * 3600
"""For an app that died and could not revoke it."""


@asynccontextmanager
async def serving_for(
    client: AsyncOverspill, folder: Path, *, tcp: bool
) -> AsyncIterator[tuple[str | None, str | None, str | None]]:
    """(Unix socket, TCP address, token for it) while the block runs; ``folder`` is private.

    Raises what :meth:`Daemon.run` raises before it serves.
    """
    options = ServeOptions(
        settings=client.settings,
        socket_path=folder / f"{secrets.token_hex(4)}.sock" if HAS_UNIX_SOCKETS else None,
        tcp=TcpAddress("127.0.0.1", 0) if tcp else None,
        drain_s=0,
    )
    daemon = Daemon(options, client=nullcontext(client))
    ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(daemon.run(ready.set_result))
    both: set[asyncio.Future[Any]] = {ready, running}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        await running
    told = ready.result()
    tokens, issued = user_tokens(client.settings.places), None
    try:
        if tcp:
            issued = tokens.issue(_name(client.app), (Scope.INFER,), _TOKEN_LIFE_S)
        yield told.socket, told.tcp, issued[0] if issued else None
    finally:
        if issued is not None:
            tokens.revoke(issued[1].id)
        daemon.stop()
        await running


def _name(app: str) -> str:
    """The app's name as a token may have it."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in app)
    return kept.strip("-")[:64] or "app"
