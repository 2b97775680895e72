"""Whoever leaves, however and whenever: the engine stops at its step, and its slot is free.

Every engine here stands still at a known step when its caller leaves. So how many steps it made is
known to the unit, and no clock is read.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import anyio
import httpx2
import pytest

from overspill import AsyncOverspill
from overspill.engines.backend import Interrupted
from overspill.engines.base import Engine
from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.scheduled import ScheduledEngine
from overspill.errors import BusyError
from overspill_edge.app import Daemon, Ready, ServeOptions

pytestmark = pytest.mark.anyio

LONG = "x" * 3000
ANSWER_STEPS = 20
DEADLINE_S = 0.4


class Counter:
    """Counts the steps of every echo in this process, and can hold them at one."""

    def __init__(self) -> None:
        self.steps = 0
        self.limit: int | None = None
        self.reached = threading.Event()
        self._stopped = threading.Event()

    def hold_at(self, steps: int) -> None:
        self.limit = steps

    def step(self, run: Any, backend: Any, rows: Any) -> Any:
        self._stopped.clear()
        while self.limit is not None and self.steps >= self.limit:
            self.reached.set()
            if self._stopped.wait(0.005):
                raise Interrupted
        self.steps += 1
        return run(backend, rows)

    def interrupt(self) -> None:
        self._stopped.set()


@pytest.fixture
def counter(monkeypatch) -> Counter:
    found = Counter()
    run, interrupt = EchoBackend.run, EchoBackend.interrupt

    def interrupted(self: EchoBackend) -> None:
        found.interrupt()
        interrupt(self)

    monkeypatch.setattr(EchoBackend, "run", lambda self, rows: found.step(run, self, rows))
    monkeypatch.setattr(EchoBackend, "interrupt", interrupted)
    return found


class Loading(Engine):
    """An engine that loads when it is first asked, as one whose worker has died does."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner
        self.asked = 0
        self.left = 0
        self.loaded = asyncio.Event()
        self.loaded.set()

    @property
    def card(self) -> Any:
        return self._inner.card

    async def start(self) -> None:
        await self._inner.start()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def health(self) -> Any:
        return await self._inner.health()

    async def count_prompt_tokens(self, request: Any) -> int | None:
        return await self._inner.count_prompt_tokens(request)

    async def _generate(self, request: Any) -> AsyncGenerator[Any]:
        self.asked += 1
        try:
            await self.loaded.wait()
        except asyncio.CancelledError:
            self.left += 1
            raise
        async for chunk in self._inner.generate(request):
            yield chunk


@dataclass
class Place:
    """A daemon, what computes behind it, and how an app reaches it."""

    engine: Loading
    ready: Ready
    settings: Any
    daemon: Daemon

    def sdk(self) -> AsyncOverspill:
        return AsyncOverspill("left", settings=self.settings, daemon="require")

    def http(self) -> httpx2.AsyncClient:
        way = httpx2.AsyncHTTPTransport(uds=self.ready.socket)
        return httpx2.AsyncClient(base_url="http://localhost", transport=way, timeout=60)


@asynccontextmanager
async def place(settings: Any, slots: int) -> AsyncGenerator[Place]:
    engine = Loading(
        ScheduledEngine(
            lambda: EchoBackend(EchoOptions(max_sequences=slots)),
            name="echo",
            runtime="echo",
            options=EngineOptions(scheduler=SchedulerOptions()),
        )
    )
    client = AsyncOverspill("daemon", settings=settings, device=engine)
    daemon = Daemon(ServeOptions(settings=settings), client=client)
    ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(daemon.run(ready.set_result))
    await asyncio.wait({ready, running}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield Place(engine, ready.result(), settings, daemon)
    finally:
        daemon.stop()
        await running


async def ask(at: Place, whole: bool, way: str, model: str) -> None:
    """Ask and stay until somebody ends it, or until the deadline does."""
    if way == "socket closed":
        body = {"model": model, "messages": [{"role": "user", "content": LONG}]}
        async with at.http() as http:
            if whole:
                await http.post("/v1/chat/completions", json=body)
                return
            body["stream"] = True
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                await answer.aread()
        return
    options: dict[str, Any] = {"model": model}
    if way == "deadline":
        options["deadline_s"] = DEADLINE_S
    async with at.sdk() as ai:
        if whole:
            await ai.chat(LONG, **options)
            return
        async for _ in ai.stream(LONG, **options):
            pass


async def leave(at: Place, whole: bool, way: str, model: str, arrived: Any) -> None:
    """Ask, wait until it has arrived where it is to be left, and leave."""
    async with anyio.create_task_group() as group:
        if way == "deadline":
            with pytest.raises(BusyError):
                await ask(at, whole, way, model)
            return
        group.start_soon(ask, at, whole, way, model)
        await arrived()
        group.cancel_scope.cancel()


async def idle(engine: Engine, others: int = 0) -> bool:
    health = await engine.health()
    return (health.active, health.queued) == (others, 0)


WAYS = ("socket closed", "SDK closed", "deadline")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
@pytest.mark.parametrize(("state", "at_step"), [("prefill", 0), ("decoding", ANSWER_STEPS)])
async def test_left_at_work(settings, counter, eventually, state, at_step, whole, way):
    async with place(settings, slots=4) as at:
        counter.hold_at(at_step)
        await leave(at, whole, way, "echo", lambda: eventually(counter.reached.is_set))
        await eventually(lambda: idle(at.engine))
        assert counter.steps == at_step
        counter.limit = None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_left_while_queued(settings, counter, eventually, whole, way):
    async with place(settings, slots=1) as at:
        counter.hold_at(ANSWER_STEPS)
        async with anyio.create_task_group() as group:
            group.start_soon(ask, at, False, "SDK closed", "echo")
            await eventually(counter.reached.is_set)

            async def queued() -> None:
                async def one() -> bool:
                    return (await at.engine.health()).queued == 1

                await eventually(one)

            await leave(at, whole, way, "echo", queued)
            await eventually(lambda: idle(at.engine, others=1))
            assert counter.steps == ANSWER_STEPS
            group.cancel_scope.cancel()
        await eventually(lambda: idle(at.engine))
        counter.limit = None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_left_while_the_model_loads(settings, counter, eventually, whole, way):
    async with place(settings, slots=1) as at:
        at.engine.loaded.clear()
        await leave(at, whole, way, "echo", lambda: eventually(lambda: at.engine.asked == 1))
        await eventually(lambda: at.engine.left == 1)
        at.engine.loaded.set()
        assert counter.steps == 0
        async with at.sdk() as ai:
            assert (await ai.chat("hi")).text == "echo: hi"
        assert at.engine.asked == 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_left_in_the_cloud(settings, counter, eventually, node_with_engine, whole, way):
    async with node_with_engine() as (ours, code, engine):
        enrolling = AsyncOverspill("t", settings=ours, daemon="never")
        async with enrolling as ai:
            await ai.enroll(code)
        async with place(replace(ours), slots=1) as at:
            before = counter.steps
            counter.hold_at(before + ANSWER_STEPS)
            await leave(at, whole, way, "river", lambda: eventually(counter.reached.is_set))
            await eventually(lambda: idle(engine))
            assert counter.steps == before + ANSWER_STEPS
            counter.limit = None
