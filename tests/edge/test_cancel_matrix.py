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
from overspill_edge.device import SharedDevice
from overspill_edge.turns import TurnOptions, Turns

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


class Openings:
    """Opens echos for the daemon's model, and can be held while it does."""

    def __init__(self, slots: int) -> None:
        self.count = 0
        self.may_end = threading.Event()
        self.may_end.set()
        self._options = EchoOptions(max_sequences=slots)

    def engine(self, _: Any) -> Engine:
        return ScheduledEngine(
            self._backend,
            name="echo",
            runtime="echo",
            options=EngineOptions(scheduler=SchedulerOptions()),
        )

    def _backend(self) -> EchoBackend:
        self.count += 1
        assert self.may_end.wait(20)
        return EchoBackend(self._options)


@dataclass
class Place:
    """A daemon, what computes behind it, and how an app reaches it."""

    device: SharedDevice
    openings: Openings
    ready: Ready
    settings: Any
    daemon: Daemon

    async def is_idle(self, others: int = 0) -> bool:
        """Nobody has a place or waits for one, in front of the engine or in it, but ``others``."""
        health, held = await self.engine.health(), self.device.residence
        waiting = (health.queued, self.device.turns.queued())
        return (health.active, *waiting, held.users) == (others, 0, [], others)

    @property
    def engine(self) -> Engine:
        return self.device._resident

    def sdk(self) -> AsyncOverspill:
        return AsyncOverspill("left", settings=self.settings, daemon="require")

    def http(self) -> httpx2.AsyncClient:
        way = httpx2.AsyncHTTPTransport(uds=self.ready.socket)
        return httpx2.AsyncClient(base_url="http://localhost", transport=way, timeout=60)


@asynccontextmanager
async def place(settings: Any, slots: int) -> AsyncGenerator[Place]:
    """As the daemon is in service: turns before a model that can be let go of and loaded."""
    openings = Openings(slots)
    turns = Turns(TurnOptions(places=slots + 1))
    device = SharedDevice(turns=turns, open_engine=openings.engine)
    client = AsyncOverspill("daemon", settings=settings, daemon="never", open_engine=device.open)
    daemon = Daemon(ServeOptions(settings=settings), client=client, device=device)
    ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(daemon.run(ready.set_result))
    await asyncio.wait({ready, running}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield Place(device, openings, ready.result(), settings, daemon)
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


async def idle(engine: Engine) -> bool:
    health = await engine.health()
    return (health.active, health.queued) == (0, 0)


WAYS = ("socket closed", "SDK closed", "deadline")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
@pytest.mark.parametrize(("state", "at_step"), [("prefill", 0), ("decoding", ANSWER_STEPS)])
async def test_left_at_work(settings, counter, eventually, state, at_step, whole, way):
    async with place(settings, slots=4) as at:
        counter.hold_at(at_step)
        await leave(at, whole, way, "echo", lambda: eventually(counter.reached.is_set))
        await eventually(at.is_idle)
        assert counter.steps == at_step
        counter.limit = None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
@pytest.mark.parametrize("where", ["in the engine", "for a turn"])
async def test_left_while_queued(settings, counter, eventually, where, whole, way):
    others = 1 if where == "in the engine" else 2
    async with place(settings, slots=1) as at:
        counter.hold_at(ANSWER_STEPS)

        async def waits(in_engine: int, for_a_turn: int) -> bool:
            health = await at.engine.health()
            return (health.queued, len(at.device.turns.queued())) == (in_engine, for_a_turn)

        async with anyio.create_task_group() as group:
            group.start_soon(ask, at, False, "SDK closed", "echo")
            await eventually(counter.reached.is_set)
            if others == 2:
                group.start_soon(ask, at, False, "SDK closed", "echo")
                await eventually(lambda: waits(1, 0))
            arrived = (1, others - 1)
            await leave(at, whole, way, "echo", lambda: eventually(lambda: waits(*arrived)))
            await eventually(lambda: waits(others - 1, 0))
            assert counter.steps == ANSWER_STEPS
            group.cancel_scope.cancel()
        await eventually(at.is_idle)
        counter.limit = None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
async def test_left_while_the_model_loads(settings, counter, eventually, whole, way):
    """Who leaves leaves alone: the loading goes on, for the next one."""
    async with place(settings, slots=1) as at:
        assert await at.device.unload(None) == ("echo", True)
        at.openings.may_end.clear()
        await leave(at, whole, way, "echo", lambda: eventually(lambda: at.openings.count == 2))
        await eventually(lambda: at.device.residence.users == 0)
        assert at.device.residence.state == "loading"
        assert at.device.turns.queued() == []
        async with at.sdk() as ai, anyio.create_task_group() as group:
            group.start_soon(ai.chat, "hi")
            await eventually(lambda: at.device.residence.users == 1)
            at.openings.may_end.set()
        await eventually(at.is_idle)
        assert counter.steps > 0
        assert at.openings.count == 2


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
