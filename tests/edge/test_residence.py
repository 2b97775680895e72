"""The daemon's model: let go of when unused, loaded when needed, never taken from an answer."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2
import pytest

from overspill.client import AsyncOverspill
from overspill.config import Settings
from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.scheduled import ScheduledEngine
from overspill.errors import DoesNotFit, InvalidRequest
from overspill_edge.app import Daemon, Ready, ServeOptions
from overspill_edge.device import SharedDevice
from overspill_edge.residence import FOREVER, parse_keep_alive_s
from overspill_edge.turns import TurnOptions, Turns

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets"),
]


def chat(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **more}


@dataclass
class Shared:
    """A daemon that looks after an echo; ``opened`` counts how often it was loaded."""

    device: SharedDevice
    http: httpx2.AsyncClient
    settings: Settings
    opened: list[ScheduledEngine]

    async def status(self) -> dict[str, Any]:
        return (await self.http.get("/overspill/v1/status")).json()


@pytest.fixture
def sharing(settings: Settings) -> Callable[..., Any]:
    @asynccontextmanager
    async def start(
        keep_alive: str = "forever",
        *,
        places: int = 5,
        delay_s: float = 0.0,
        fails: Callable[[int], Exception | None] = lambda n: None,
    ) -> AsyncIterator[Shared]:
        opened: list[ScheduledEngine] = []

        def open_engine(_: Settings) -> ScheduledEngine:
            failure = fails(len(opened))
            if failure is not None:
                raise failure
            backend = EchoBackend(EchoOptions(token_delay_s=delay_s))
            opened.append(ScheduledEngine(lambda: backend, name="echo", runtime="echo"))
            return opened[-1]

        turns = Turns(TurnOptions(places=places))
        device = SharedDevice(keep_alive=keep_alive, turns=turns, open_engine=open_engine)
        client = AsyncOverspill(
            "daemon", settings=settings, daemon="never", open_engine=device.open
        )
        daemon = Daemon(ServeOptions(settings=settings), client=client, device=device)
        ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(daemon.run(ready.set_result))
        await asyncio.wait({ready, running}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await running
        transport = httpx2.AsyncHTTPTransport(uds=ready.result().socket)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://localhost", timeout=30
        ) as http:
            yield Shared(device, http, settings, opened)
        daemon.stop()
        await asyncio.wait_for(running, 20)

    return start


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("10m", 600), ("90s", 90), ("1.5h", 5400), ("250ms", 0.25), (300, 300), ("300", 300),
     (0, 0), ("0", 0), (-1, FOREVER), ("-1", FOREVER), ("forever", FOREVER)],
)  # fmt: skip
def test_lengths_of_time(said, seconds):
    assert parse_keep_alive_s(said) == seconds


@pytest.mark.parametrize("said", ["", "soon", "10 parsecs", "1e9", math.nan, math.inf, "m"])
def test_no_length_of_time(said):
    with pytest.raises(InvalidRequest, match="keep_alive"):
        parse_keep_alive_s(said)


async def test_an_unused_model_goes_and_comes_back_with_the_next_request(sharing, eventually):
    async with sharing("1ms") as shared:
        await eventually(lambda: shared.device.residence.state == "unloaded")
        assert [m["name"] for m in (await shared.status())["models"]] == ["echo"]
        answer = await shared.http.post("/v1/chat/completions", json=chat())
        assert answer.json()["choices"][0]["message"]["content"] == "echo: hello"
        assert len(shared.opened) >= 2
        await eventually(lambda: shared.device.residence.state == "unloaded")


async def test_a_request_says_how_long_the_model_stays(sharing, eventually):
    async with sharing() as shared:
        assert (await shared.status())["residence"]["keep_alive_s"] is None
        stays = chat(overspill={"keep_alive": "1h"})
        await shared.http.post("/v1/chat/completions", json=stays)
        told = (await shared.status())["residence"]
        assert (told["state"], told["keep_alive_s"]) == ("loaded", 3600)
        assert 3590 < told["unloads_in_s"] <= 3600
        await shared.http.post("/v1/chat/completions", json=chat(overspill={"keep_alive": 0}))
        await eventually(lambda: shared.device.residence.state == "unloaded")
        wrong = await shared.http.post(
            "/v1/chat/completions", json=chat(overspill={"keep_alive": "soon"})
        )
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_request")


async def test_a_busy_model_is_never_let_go_of(sharing, eventually):
    async with sharing("0", delay_s=0.01) as shared:
        async with shared.http.stream(
            "POST", "/v1/chat/completions", json=chat("x" * 60, stream=True)
        ) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            told = await shared.http.post("/overspill/v1/models/unload", json={})
            assert (told.status_code, told.json()["error"]["code"]) == (409, "model_busy")
            said = "".join([line async for line in lines])
        assert "[DONE]" in said
        await eventually(lambda: shared.device.residence.state == "unloaded")


async def test_unload_and_prewarm_by_name(sharing):
    async with sharing() as shared:
        post = shared.http.post
        gone = (await post("/overspill/v1/models/unload", json={"model": "echo"})).json()
        assert gone == {"model": "echo", "state": "unloaded", "was_loaded": True}
        again = (await post("/overspill/v1/models/unload", json={})).json()
        assert again["was_loaded"] is False
        there = await post("/overspill/v1/models/prewarm", json={"keep_alive": "5m"})
        assert there.json() == {"model": "echo", "state": "loaded"}
        assert (await shared.status())["residence"]["keep_alive_s"] == 300
        unknown = await post("/overspill/v1/models/prewarm", json={"model": "eco"})
        assert unknown.status_code == 404
        assert "echo" in unknown.json()["error"]["message"]


async def test_who_would_not_wait_gets_503_and_the_model_is_loaded_meanwhile(sharing, eventually):
    async with sharing() as shared:
        await shared.http.post("/overspill/v1/models/unload", json={})
        told = await shared.http.post("/v1/chat/completions", json=chat(overspill={"wait": False}))
        assert (told.status_code, told.json()["error"]["code"]) == (503, "model_loading")
        await eventually(lambda: shared.device.residence.state == "loaded")


async def test_a_model_that_does_not_come_back_is_an_error_and_the_next_try_a_new_one(sharing):
    problem = {1: DoesNotFit("No room now.")}
    async with sharing(fails=lambda count: problem.pop(count, None)) as shared:
        await shared.http.post("/overspill/v1/models/unload", json={})
        failed = await shared.http.post("/overspill/v1/models/prewarm", json={})
        assert failed.status_code >= 500 or failed.status_code == 400
        assert (await shared.status())["residence"]["state"] == "unloaded"
        answer = await shared.http.post("/v1/chat/completions", json=chat())
        assert answer.status_code == 200


async def test_the_queue_is_shown_to_its_own_app_and_to_the_sdk(sharing, eventually):
    async with sharing(places=1, delay_s=0.01) as shared:
        ai = AsyncOverspill("notes", settings=shared.settings, daemon="require")
        async with ai:
            first = asyncio.create_task(ai.chat("x" * 60))
            await eventually(lambda: shared.device.residence.users)
            request = ai.build("second")
            second = asyncio.create_task(ai.collect(request))
            await eventually(lambda: len(shared.device.turns.queued()) == 1)
            (waits,) = (await shared.status())["queue"]
            assert (waits["app"], waits["position"]) == ("notes", 0)
            assert waits["request_id"] == request.id
            assert "second" not in json.dumps(waits)
            assert (await second).text == "echo: second"
            assert (await first).text.startswith("echo: x")


async def test_the_command_line_unloads_and_prewarms(sharing, command):
    async with sharing() as shared:
        gone = await anyio.to_thread.run_sync(lambda: command.run("models", "unload", "--json"))
        assert json.loads(gone.stdout)["state"] == "unloaded"
        assert shared.device.residence.state == "unloaded"
        there = await anyio.to_thread.run_sync(lambda: command.run("models", "prewarm"))
        assert there.stdout == "echo: loaded\n"
        wrong = await anyio.to_thread.run_sync(lambda: command.run("models", "unload", "eco"))
        assert (wrong.returncode, "Traceback" in wrong.stderr) == (3, False)


def test_without_a_daemon_the_command_says_so(command):
    told = command.run("models", "prewarm")
    assert told.returncode == 6
    assert "No daemon answers" in told.stderr
