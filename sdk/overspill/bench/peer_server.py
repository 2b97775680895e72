"""A peer's server while it runs: started on a free port, asked over SSE, ended with its block."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from overspill.bench.peers import ServerCommand
from overspill.bench.sse import get_status, post_events
from overspill.bench.streams import StreamClock, StreamTimes
from overspill.bench.vocabulary import make_words
from overspill.config import child_environment
from overspill.errors import EngineError

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0


class PeerServer:
    """A running server; :func:`running` makes one."""

    def __init__(self, command: ServerCommand, port: int) -> None:
        self._command = command
        self._port = port

    async def stream(
        self,
        prompt_tokens: int,
        max_tokens: int,
        *seed: int,
        system_tokens: int = 0,
        clock: StreamClock | None = None,
    ) -> StreamTimes:
        """One greedy completion; see :class:`~.streams.Target`."""
        clock = clock or StreamClock()
        words = make_words(prompt_tokens - system_tokens, (*seed, prompt_tokens))
        prompt = make_words(system_tokens, (system_tokens,)) + words
        if self._command.dialect == "native":
            await self._native(prompt, max_tokens, clock)
        else:
            await self._openai(prompt, max_tokens, clock)
        return clock.times(max_tokens)

    async def _native(self, prompt: str, max_tokens: int, clock: StreamClock) -> None:
        # A chain of one sampler, the cheapest that this server can be asked for.
        body = {
            "prompt": prompt,
            "n_predict": max_tokens,
            "stream": True,
            "temperature": 0,
            "samplers": ["top_k"],
            "top_k": 1,
        }
        async with aclosing(post_events(self._port, "/completion", body)) as events:
            async for event in events:
                if "error" in event:
                    raise EngineError(f"{self._command.name} said: {event['error']}")
                new = int(event["tokens_predicted"]) - clock.tokens
                if event["content"]:
                    clock.note(new)
                else:
                    clock.tokens += new

    async def _openai(self, prompt: str, max_tokens: int, clock: StreamClock) -> None:
        body: dict[str, Any] = {
            "model": "bench",
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": True,
            "temperature": 0,
        }
        reason = None
        async with aclosing(post_events(self._port, "/v1/completions", body)) as events:
            async for event in events:
                choice = (event.get("choices") or [{}])[0]
                if choice.get("text"):
                    clock.note(1)
                reason = choice.get("finish_reason") or reason
        if reason == "length":
            # Its own word for having reached the limit: pieces may hold more than one token.
            clock.tokens = max_tokens


@asynccontextmanager
async def running(command: ServerCommand) -> AsyncGenerator[PeerServer]:
    """Start the server, wait until it is ready, and end it when the block is left.

    Raises :class:`EngineError` with its last words where it ends or is not ready in time.
    """
    with TemporaryDirectory(prefix="overspill-peer-") as folder:
        port = _free_port()
        process = await _spawn(command, port, Path(folder))
        try:
            await _wait_until_ready(command, process, port, Path(folder))
            yield PeerServer(command, port)
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _spawn(command: ServerCommand, port: int, folder: Path) -> asyncio.subprocess.Process:
    def filled(text: str) -> str:
        return text.replace('"{port}"', str(port)).replace("{port}", str(port))

    for name, text in command.files.items():
        (folder / name).write_text(filled(text), encoding="utf-8")
    words = [filled(word).replace("{folder}", str(folder)) for word in command.command]
    with (folder / "log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=child_environment(),
        )


async def _wait_until_ready(
    command: ServerCommand, process: asyncio.subprocess.Process, port: int, folder: Path
) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while await get_status(port, command.health) != 200:
        if process.returncode is not None:
            raise EngineError(
                f"{command.name} ended with code {process.returncode} while it started: "
                f"{_last_words(folder)}"
            )
        if time.monotonic() > deadline_s:
            raise EngineError(f"{command.name} was not ready within {START_TIMEOUT_S:g} s.")
        await asyncio.sleep(0.1)


def _last_words(folder: Path) -> str:
    lines = (folder / "log").read_text("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def _free_port() -> int:
    """Free a moment ago: these servers cannot tell which port they took themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
