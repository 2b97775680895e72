"""Rows of the matrix about engines: one that dies or hangs, and a long prompt that joins others."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import psutil
from faults.history import History, record
from faults.nodes import Fleet, NodeProcess, running
from faults.rows_fleet import serving_status
from faults.rows_road import ask
from faults.scale import CannotRun, Measured, NotInstalled, Scale, quantile, tell

from overspill.bench.models import made_model
from overspill.bench.ours import OurTarget, in_process
from overspill.bench.streams import StreamClock, Target
from overspill.bench.throughput import plain_options
from overspill.config import load_settings
from overspill.engines.scheduled import ScheduledEngine

SERVING = b"\x08\x01"
"""As grpc.health.v1 writes it."""
GONE_S = 60.0
WEDGED_TURNS = 2


async def r7(scale: Scale, folder: Path) -> Measured:
    """A long prompt joins decoders, and a short prompt comes right behind it: a real runtime, on
    random weights at a real shape (short: the smallest)."""
    for module in ("llama_cpp", "gguf"):
        if find_spec(module) is None:
            raise NotInstalled(f"{module} is not installed: pip install 'overspill[bench]'")
    shape, long = ("mini", 1000) if scale.is_short else ("q05", 8000)
    decoders = scale.of(8, short=4)
    cache = load_settings().places.cache / "bench"
    model = await asyncio.to_thread(made_model, shape, cache)
    options = plain_options(decoders + 2, long + 512)
    idle: list[float] = []
    joined: list[float] = []
    ttft: list[float] = []
    async with in_process(model, options) as target, _at_most(scale.seconds(1100, short=60)):
        for turn in range(scale.of(1, short=2)):
            async with _decoding(target, decoders, turn, long + 384) as clocks:
                begun = time.perf_counter()
                await asyncio.sleep(scale.seconds(5, short=0.5))
                arrived = time.perf_counter()
                await target.stream(long, 1, turn, decoders)
                ended = time.perf_counter()
                idle += _gaps(clocks, begun, arrived)
                joined += _gaps(clocks, arrived, ended)
                ttft += [await _behind(target, long, 10 * turn + number) for number in range(3)]
    if not (idle and joined):
        raise CannotRun("the decoders came to their end before the long prompt")
    return {
        "itl_ratio": quantile(joined, 0.99) / quantile(idle, 0.99),
        "ttft_steps": median(ttft) / median(joined),
    }


@asynccontextmanager
async def _at_most(seconds: float) -> AsyncGenerator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise CannotRun(f"this machine needs more than {seconds:.0f} s for it") from None


@asynccontextmanager
async def _decoding(
    target: Target, count: int, turn: int, tokens: int
) -> AsyncGenerator[list[StreamClock]]:
    """Streams that decode while the block runs; they are cancelled with it."""
    clocks = [StreamClock() for _ in range(count)]
    tasks = [
        asyncio.create_task(target.stream(64, tokens, turn, number, clock=clock))
        for number, clock in enumerate(clocks)
    ]
    try:
        while not all(clock.pieces for clock in clocks):
            for task in tasks:
                if task.done():
                    task.result()  # raises what ended it
            await asyncio.sleep(0.002)
        yield clocks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _gaps(clocks: list[StreamClock], begin_s: float, end_s: float) -> list[float]:
    return [gap for clock in clocks for gap in clock.gaps_s(begin_s, end_s)]


async def _behind(target: OurTarget, long: int, turn: int) -> float:
    """TTFT (s) of a short prompt while a long one is computed."""
    before = _active(target)
    other = asyncio.create_task(target.stream(long, 1, turn, 900))
    try:
        while _active(target) == before:  # it is tokenized, or waits for a slot
            if other.done():
                other.result()
            await asyncio.sleep(0.001)
        return (await target.stream(32, 2, turn, 901)).ttft_s
    finally:
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)


def _active(target: OurTarget) -> int:
    assert isinstance(target.engine, ScheduledEngine)
    status = target.engine.status()
    return 0 if status is None else status.active


async def r15(scale: Scale, folder: Path) -> Measured:
    """A worker is killed, one stopped where it stands, and one's engine wedged while its process
    answers: health tells, its streams go on elsewhere, and the node has another worker without
    being asked for anything."""
    told: list[float] = []
    back: list[float] = []
    histories: list[History] = []
    options = ["--worker", "--echo-delay-s", "0.02", "--slots", "16"]
    options += ["--give-up-s", "3"] if scale.is_short else []
    with running(folder, 2, *options) as fleet:
        await fleet.enrol()
        for turn in range(scale.of(5, short=1)):
            # A wedged engine may be a slow one, for which its node has patience: twice is enough.
            wedge = [signal.SIGUSR1] if turn < WEDGED_TURNS else []
            for kind in (signal.SIGKILL, signal.SIGSTOP, *wedge):
                not_serving_s, serving_s = await _worker_gone(fleet, kind, turn, histories)
                told.append(not_serving_s)
                back.append(serving_s)
    tell("R15", [str(history) for history in histories if not history.is_complete])
    return {
        "not_serving_s": max(told),
        "restarted_s": max(back),
        "incomplete": sum(not history.is_complete for history in histories),
        "violations": sum(bool(history.violation) for history in histories),
    }


async def _worker_gone(
    fleet: Fleet, kind: signal.Signals, turn: int, histories: list[History]
) -> tuple[float, float]:
    """Seconds until the first node said NOT_SERVING, and until it served again; eight streams over
    both nodes run meanwhile."""
    node = fleet.nodes[0]
    clients = [fleet.client() for _ in range(8)]
    asked = [
        asyncio.create_task(record(client, ask(300, 8 * turn + number)))
        for number, client in enumerate(clients)
    ]
    await asyncio.sleep(1.0)
    os.kill(worker_of(node), kind)
    begun = time.monotonic()
    told_s = await _until_status(fleet, begun, is_serving=False)
    back_s = await _until_status(fleet, begun, is_serving=True)
    histories += await asyncio.gather(*asked)
    for client in clients:
        await client.aclose()
    return told_s, back_s


def worker_of(node: NodeProcess) -> int:
    """The process id of a node's engine."""
    assert node.process is not None
    (worker,) = psutil.Process(node.process.pid).children()
    return int(worker.pid)


async def _until_status(fleet: Fleet, begun: float, *, is_serving: bool) -> float:
    while time.monotonic() - begun < GONE_S:
        if (await serving_status(fleet, 0) == SERVING) is is_serving:
            return time.monotonic() - begun
        await asyncio.sleep(0.02)
    return float("inf")
