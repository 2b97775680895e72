"""A daemon as a command of its own, and an engine's face for the way through it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from overspill.client import AsyncOverspill
from overspill.config import child_environment, load_settings
from overspill.engines.base import Engine
from overspill.engines.options import EngineOptions
from overspill.errors import EngineError
from overspill.transport.handshake import SOCKET_NAME
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Privacy, Request


@asynccontextmanager
async def serving(environ: Mapping[str, str], socket: Path) -> AsyncIterator[Path]:
    """``overspill serve`` on ``socket``. Raises :class:`EngineError` where it does not start."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "overspill.cli.main", "serve", "--json", "--socket", str(socket)),
        env=child_environment(environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        if process.stdout is None or not await process.stdout.readline():
            raise EngineError("The daemon did not start.", mend="See: overspill serve")
        yield socket
    finally:
        process.terminate()
        await process.wait()


class ThroughDaemon(Engine):
    """What the daemon's device answers, over gRPC on its Unix socket, as an app's SDK asks it."""

    def __init__(self, ai: AsyncOverspill, card: ModelCard) -> None:
        self._ai = ai
        self._card = card

    @property
    def card(self) -> ModelCard:
        """The daemon's."""
        return self._card

    async def count_prompt_tokens(self, request: Request) -> int | None:
        """As the daemon's plan tells."""
        return (await self._ai.plan_request(request)).prompt_tokens

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        async with aclosing(self._ai.run_request(request)) as pieces:
            async for piece in pieces:
                yield Chunk(text=piece.text, token_ids=piece.token_ids, finish=piece.finish)


@asynccontextmanager
async def through_daemon(model: Path, options: EngineOptions) -> AsyncIterator[ThroughDaemon]:
    """The engine in a daemon of its own; a client has to find it by its socket."""
    with TemporaryDirectory(prefix="ovs") as folder:
        home = Path(folder)
        (home / "config").mkdir()
        (home / "config" / "config.toml").write_text(
            f'speculation = "{options.scheduler.speculation}"\n'
            f"max_context_tokens = {options.context_tokens}\n"
            f"device_slots = {options.max_sequences}\n"
            # The engine's process is the daemon: what is added is gRPC's way and the SDK's.
            "isolate = false\n"
        )
        environ = {
            "OVERSPILL_HOME": folder,
            "OVERSPILL_MODEL": str(model),
        }
        settings = load_settings(environ=environ).with_floor(Privacy.DEVICE)
        async with (
            serving(environ, settings.places.runtime / SOCKET_NAME),
            AsyncOverspill("bench", settings=settings, daemon="require") as ai,
        ):
            yield ThroughDaemon(ai, (await ai.models())[0])
