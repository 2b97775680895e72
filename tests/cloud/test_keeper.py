"""A node's workers are kept running: killed, stopped where they stand, or slow: no crime."""

from __future__ import annotations

import os
import signal

import anyio
import pytest

from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.types.chat import Message, Request
from overspill.worker import WorkerEngine, WorkerOptions
from overspill_cloud.events import EngineRestarted
from overspill_cloud.keeper import Keeper, KeeperOptions

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name == "nt", reason="signals: POSIX only"),
]


class Watch:
    """Seconds that a test turns on."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_a_dead_worker_is_started_again_without_a_request():
    told = []
    async with WorkerEngine("echo") as engine:
        keeper = Keeper("m", engine, told.append)
        await keeper.look()
        assert told == []
        dead = engine.pid
        os.kill(dead, signal.SIGKILL)
        while engine.supervisor.is_running:  # noqa: ASYNC110 - a process
            await anyio.sleep(0.005)
        await keeper.look()
        assert told == [EngineRestarted("m", ok=True)]
        assert engine.pid != dead
        assert (await engine.health()).ok


async def test_a_worker_that_does_not_answer_is_replaced_after_a_while():
    told, watch = [], Watch()
    worker = WorkerOptions(health_timeout_s=0.1)
    async with WorkerEngine("echo", worker=worker) as engine:
        keeper = Keeper("m", engine, told.append, KeeperOptions(silent_for_s=5), watch)
        stopped = engine.pid
        os.kill(stopped, signal.SIGSTOP)
        await keeper.look()
        assert engine.pid == stopped  # once is no proof
        watch.now_s = 5.0
        await keeper.look()
        assert told == [EngineRestarted("m", ok=True)]
        assert engine.pid != stopped
        while not (await engine.health()).ok:  # noqa: ASYNC110 - a process
            await anyio.sleep(0.01)


async def test_an_engine_that_is_stuck_gets_longer_than_one_that_is_silent():
    told, watch = [], Watch()
    slow = EngineOptions(token_delay_s=30.0, scheduler=SchedulerOptions(stall_after_s=0.3))
    async with WorkerEngine("echo", options=slow) as engine:
        options = KeeperOptions(silent_for_s=5, give_up_after_s=20)
        keeper = Keeper("m", engine, told.append, options, watch)
        stream = engine.generate(Request((Message("user", "slow"),)))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_failing, stream)
            while not await _is_stuck_at_work(engine):  # noqa: ASYNC110 - a process
                await anyio.sleep(0.01)
            before = engine.pid
            await keeper.look()
            watch.now_s = 19.0
            await keeper.look()
            assert (told, engine.pid) == ([], before)
            watch.now_s = 20.0
            await keeper.look()
        assert told == [EngineRestarted("m", ok=True)]
        assert engine.pid != before


async def _is_stuck_at_work(engine):
    health = await engine.health()
    return health.active and not health.ok


async def _failing(stream):
    from overspill.errors import EngineDied

    with pytest.raises(EngineDied):
        await anext(stream)


async def test_a_worker_that_cannot_be_started_is_told_and_tried_again():
    told = []
    once = WorkerOptions(max_deaths=1, deaths_window_s=0.5)
    async with WorkerEngine("echo", worker=once) as engine:
        keeper = Keeper("m", engine, told.append)
        os.kill(engine.pid, signal.SIGKILL)
        while engine.supervisor.is_running:  # noqa: ASYNC110 - a process
            await anyio.sleep(0.005)
        while not (told and told[-1].ok):
            await keeper.look()
            await anyio.sleep(0.02)
        assert told[0] == EngineRestarted("m", ok=False)
