"""A new daemon takes over under live streams: none is lost, none is refused, each may fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from overspill.client import AsyncOverspill
from overspill.config import Settings
from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.scheduled import ScheduledEngine
from overspill.errors import BusyError, DoesNotFit
from overspill_edge.app import Daemon, Ready, ServeOptions
from overspill_edge.device import SharedDevice
from overspill_edge.handover import handover_path
from overspill_edge.listen import TcpAddress
from overspill_edge.tokens import Scope, user_tokens

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets"),
]


@dataclass
class One:
    """A daemon of this process that is the user's own, and what its engine was asked."""

    ready: Ready
    daemon: Daemon
    running: asyncio.Task[None]
    name: str
    settings: Settings

    def http(self) -> httpx2.AsyncClient:
        transport = httpx2.AsyncHTTPTransport(uds=self.ready.socket)
        return httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=30)


@pytest.fixture
def serving(settings: Settings) -> Callable[..., Any]:
    @asynccontextmanager
    async def start(
        name: str, *, upgrade: bool = False, delay_s: float = 0.0, fails: Exception | None = None
    ) -> AsyncIterator[One]:
        def open_engine(_: Settings) -> ScheduledEngine:
            if fails is not None:
                raise fails
            backend = EchoBackend(EchoOptions(name=name, token_delay_s=delay_s))
            return ScheduledEngine(lambda: backend, name=name, runtime="echo")

        device = SharedDevice(open_engine=open_engine)
        client = AsyncOverspill(
            "daemon", settings=settings, daemon="never", open_engine=device.open
        )
        options = ServeOptions(
            settings=settings, tcp=TcpAddress("127.0.0.1", 0), replaceable=True, upgrade=upgrade
        )
        daemon = Daemon(options, client=client, device=device)
        ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(daemon.run(ready.set_result))
        await asyncio.wait({ready, running}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await running
        try:
            yield One(ready.result(), daemon, running, name, settings)
        finally:
            if not running.done():
                daemon.stop()
            await asyncio.wait_for(running, 20)

    return start


def is_there(path: str) -> bool:
    return os.path.exists(path)


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **more}


async def streamed(lines: AsyncIterator[str]) -> tuple[str, bool]:
    """The text of a chat stream, and whether it came to its good end."""
    text, ended = "", False
    async for line in lines:
        if line == "data: [DONE]":
            ended = True
        elif line.startswith("data: {"):
            choices = json.loads(line[6:]).get("choices", [])
            text += "".join(choice["delta"].get("content") or "" for choice in choices)
    return text, ended


async def test_live_streams_end_where_they_began_and_new_requests_go_to_the_new_one(serving):
    asked = "x" * 80
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(serving("old", delay_s=0.01))
        http = await stack.enter_async_context(old.http())
        ai = AsyncOverspill("notes", settings=old.settings, daemon="require")
        await stack.enter_async_context(ai)
        by_http = await stack.enter_async_context(
            http.stream("POST", "/v1/chat/completions", json=chat(asked, stream=True))
        )
        lines = by_http.aiter_lines()
        await anext(lines)
        by_sdk = ai.stream(asked)
        pieces = [await anext(by_sdk)]

        new = await stack.enter_async_context(serving("new", upgrade=True))
        assert new.ready.socket == old.ready.socket
        assert new.ready.tcp == old.ready.tcp
        assert not old.running.done()
        assert (await ai.chat("hi")).model == "new"  # by the same client, its stream still running
        async with new.http() as fresh:
            answer = await fresh.post("/v1/chat/completions", json=chat("hi"))
            assert answer.json()["model"] == "new"
        text, ended = await streamed(lines)
        assert ended
        assert (text[-80:], len(text)) == (asked, len("echo: ") + 80)
        pieces += [piece async for piece in by_sdk]
        assert "".join(piece.text for piece in pieces) == f"echo: {asked}"
        assert pieces[-1].route.model == "old"
        await http.aclose()
        await asyncio.wait_for(old.running, 20)
        assert (await ai.chat("still there")).model == "new"
        assert is_there(new.ready.socket)


async def test_no_request_is_refused_while_it_changes_hands(serving, eventually):
    """Over new connections and kept ones, on both transports, without a pause."""
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(serving("old"))
        token = user_tokens(old.settings.places).issue("t", (Scope.INFER,))[0]
        stop, answered = asyncio.Event(), list[str]()

        async def ask_on_and_on(fresh: bool) -> None:
            tcp = httpx2.AsyncClient(
                base_url=f"http://{old.ready.tcp}", headers={"Authorization": f"Bearer {token}"}
            )
            unix = old.http()
            async with tcp, unix:
                while not stop.is_set():
                    for client in (tcp, unix):
                        headers = {"Connection": "close"} if fresh else {}
                        answer = await client.post(
                            "/v1/chat/completions", json=chat("hi"), headers=headers
                        )
                        assert answer.status_code == 200, answer.text
                        answered.append(answer.json()["model"])

        asking = [asyncio.create_task(ask_on_and_on(fresh)) for fresh in (True, True, False)]
        await stack.enter_async_context(serving("new", upgrade=True))
        await asyncio.wait_for(old.running, 20)
        seen = len(answered)
        await eventually(lambda: len(answered) >= seen + 6 or any(task.done() for task in asking))
        stop.set()
        await asyncio.gather(*asking)
        assert answered[-1] == "new"
        assert "old" in answered


async def test_a_new_one_that_cannot_start_changes_nothing(serving):
    async with serving("old") as old, old.http() as http:
        for _ in range(2):
            with pytest.raises(DoesNotFit):
                async with serving("new", upgrade=True, fails=DoesNotFit("No room for two.")):
                    pass
            answer = await http.post("/v1/chat/completions", json=chat("hi"))
            assert answer.json()["model"] == "old"
            assert is_there(old.ready.socket)
        with pytest.raises(BusyError, match=f"process {os.getpid()}, version"):
            async with serving("third"):
                pass
        async with serving("new", upgrade=True) as new, new.http() as fresh:
            answer = await fresh.post("/v1/chat/completions", json=chat("hi"))
            assert answer.json()["model"] == "new"


@pytest.mark.parametrize("said", [b"", b"{}\n", b'{"protocol": 99}\n', b"nonsense\n", b"[]\n"])
async def test_whoever_says_something_else_gets_nothing(serving, said):
    async with serving("old") as old:
        path = str(handover_path(old.daemon._place.listeners.socket_path))
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(said)
        writer.write_eof()
        told = await reader.read()
        assert told == b"" or b"error" in told
        writer.close()
        async with serving("new", upgrade=True) as new:
            assert new.ready.socket == old.ready.socket


async def test_one_that_breaks_off_after_the_locks_were_free_gives_them_back(serving):
    from overspill_edge.handover import take_over

    async with serving("old") as old:
        taken = await take_over(old.daemon._place.listeners.socket_path)
        await taken.take()
        taken.close()
        for one in taken.sockets:
            one.close()
        async with old.http() as http:
            assert (await http.post("/v1/chat/completions", json=chat("hi"))).is_success
        with pytest.raises(BusyError, match="already runs"):
            async with serving("third"):
                pass


async def test_with_none_running_it_simply_starts(serving):
    async with serving("new", upgrade=True) as new, new.http() as http:
        assert (await http.post("/v1/chat/completions", json=chat("hi"))).is_success


def test_processes_hand_over_and_the_old_one_exits_0(command):
    with command.serving() as (old, was):
        transport = httpx2.HTTPTransport(uds=was["socket"])
        with httpx2.Client(transport=transport, base_url="http://localhost", timeout=60) as http:
            body = chat("z" * 500, stream=True)
            with http.stream("POST", "/v1/chat/completions", json=body) as stream:
                lines = stream.iter_lines()
                next(lines)
                second = command.run("serve")
                assert second.returncode == 7
                assert f"process {old.pid}" in second.stderr
                with command.serving("--upgrade") as (new, now):
                    assert now["socket"] == was["socket"]
                    said = "".join(lines)
                    assert "[DONE]" in said
                    assert old.wait(30) == 0
                    answer = http.get("/overspill/v1/status").json()
                    assert answer["pid"] == new.pid
                    new.send_signal(signal.SIGTERM)
                    assert new.wait(30) == 0
    assert not os.path.exists(was["socket"])
