"""How far the model is loaded: told by the runtime, through engine and worker, to whoever waits."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading

import httpx2
import pytest

from overspill.client import AsyncOverspill
from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.loading import on_loaded, telling_loaded
from overspill.engines.registry import BROOK, open_engine
from overspill.engines.scheduled import ScheduledEngine
from overspill.worker import host
from overspill_edge.app import Daemon, ServeOptions
from overspill_edge.device import SharedDevice
from overspill_edge.work import HttpLimits

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets"),
]

ASKED = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}


class SlowOpening:
    """Opens an echo that is loaded up to ``share`` until somebody lets it go on."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.told, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> EchoBackend:
        on_loaded()(self.share)
        self.told.set()
        assert self.go_on.wait(20)
        return EchoBackend(EchoOptions())

    def engine(self) -> ScheduledEngine:
        return ScheduledEngine(self, name="echo", runtime="echo")


@pytest.mark.parametrize("runtime", ["llama.cpp", "mlx"])
def test_a_runtime_tells_how_far_it_is(runtime, repository):
    if runtime == "mlx":
        pytest.importorskip("mlx_lm", reason="the extra mlx is not installed")
        from overspill.engines.mlx import MlxBackend

        folder = repository / "examples" / "family" / "models" / "brook-f32"
        open_backend = lambda: MlxBackend(folder, name="brook")  # noqa: E731
    else:
        pytest.importorskip("llama_cpp", reason="the extra llama is not installed")
        from overspill.engines.llama_cpp import LlamaCppBackend

        open_backend = lambda: LlamaCppBackend(BROOK, name="brook")  # noqa: E731
    shares: list[float] = []
    with telling_loaded(shares.append):
        open_backend().close()
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] <= 1.0


async def test_an_engine_that_has_loaded_says_nothing_of_it():
    engine = open_engine("echo")
    assert engine.loading is None
    async with engine:
        assert engine.loading is None


async def test_a_worker_writes_down_how_far_it_is(eventually, monkeypatch):
    monkeypatch.setattr(host, "_TELL_LOADING_S", 0.01)
    opening, said = SlowOpening(0.25), io.BytesIO()
    engine = opening.engine()
    starting = asyncio.create_task(host._started(engine, said))
    await eventually(said.getvalue)
    opening.go_on.set()
    await starting
    await engine.aclose()
    assert [json.loads(line) for line in said.getvalue().splitlines()] == [{"loading": 0.25}]


async def test_whoever_waits_is_told_the_share_by_status_comment_and_refusal(settings, eventually):
    openings = [SlowOpening(0.0), SlowOpening(0.4)]
    openings[0].go_on.set()
    device = SharedDevice(open_engine=lambda _: openings.pop(0).engine())
    second = openings[1]
    client = AsyncOverspill("daemon", settings=settings, daemon="never", open_engine=device.open)
    options = ServeOptions(settings=settings, limits=HttpLimits(heartbeat_s=0.02))
    daemon, ready = Daemon(options, client=client, device=device), asyncio.Future()
    running = asyncio.create_task(daemon.run(ready.set_result))
    way = httpx2.AsyncHTTPTransport(uds=(await ready).socket)
    async with httpx2.AsyncClient(transport=way, base_url="http://localhost", timeout=30) as http:
        assert (await http.get("/overspill/v1/status")).json()["loading"] is None
        await http.post("/overspill/v1/models/unload", json={})
        told = (await http.get("/overspill/v1/status")).json()
        assert (told["loading"], told["residence"]["state"]) == (0.0, "unloaded")
        body = {**ASKED, "stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            async for line in lines:
                if line == ": loading 40%":
                    break
            told = (await http.get("/overspill/v1/status")).json()
            assert (told["loading"], told["residence"]["state"]) == (0.4, "loading")
            seen = (await http.get("/overspill/v1/overview")).json()["model"]
            assert seen["loaded_share"] == 0.4
            refused = await http.post(
                "/v1/chat/completions", json={**ASKED, "overspill": {"wait": False}}
            )
            assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (503, True)
            assert "40%" in refused.json()["error"]["message"]
            second.go_on.set()
            assert "data: [DONE]" in [line async for line in lines]
        assert (await http.get("/overspill/v1/status")).json()["loading"] is None
    daemon.stop()
    await running
