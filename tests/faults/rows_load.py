"""Rows of the matrix about load: many streams, cancels, overload, a node that refuses all."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

from faults.history import record
from faults.nodes import Fleet, NodeProcess, rss_bytes, running
from faults.roads import WatchedRoad
from faults.rows_road import ask, read_on
from faults.scale import Measured, Scale, quantile
from faults.tls import write_certificate

from overspill.errors import BusyError, OverspillError
from overspill.transport.grpc import GrpcOptions
from overspill.types.chat import Chunk, Message, Request


@asynccontextmanager
async def stamped(folder: Path, tokens_per_s: float, *flags: str) -> AsyncGenerator[Fleet]:
    """One node of the engine that writes the time."""
    fleet = Fleet(folder)
    write_certificate(fleet.certificate, fleet.key_file)
    command = [sys.executable, str(Path(__file__).with_name("stamp_node.py"))]
    process = await asyncio.to_thread(_popen, [*command, str(folder), str(tokens_per_s), *flags])
    try:
        assert process.stdout is not None
        facts = json.loads(await asyncio.to_thread(process.stdout.readline))
        node = NodeProcess(fleet, 0, process, facts["listen"], facts["dev_root"])
        fleet.nodes.append(node)
        await fleet.enrol()
        yield fleet
    finally:
        process.kill()
        process.wait()


def _popen(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def open_files(process: subprocess.Popen[str]) -> int:
    """How many files a process holds (Linux)."""
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


STARTS_PER_S = 40
"""How fast the streams of ``steady`` come at first; later as they end, one for one."""


class StampCheck:
    """Counts what is wrong with one stream of ``stamp_node``: its tokens are numbered modulo 256,
    and each has a later time than the one before. What is lost and what comes twice are counted
    apart: one of each is two, not none."""

    def __init__(self) -> None:
        self._next = 0
        self._last_s = 0.0
        self._stamps = 0
        self._ids = 0
        self._wrong = 0

    def take(self, stamps_s: Sequence[float], token_ids: Sequence[int]) -> None:
        """What came now."""
        for stamp in stamps_s:
            self._wrong += stamp <= self._last_s
            self._last_s = max(stamp, self._last_s)
        for token in token_ids:
            ahead = (token - self._next) % 256
            if ahead < 128:  # so many were left out
                self._wrong += ahead
                self._next += ahead + 1
            else:  # it was there before
                self._wrong += 1
        self._stamps += len(stamps_s)
        self._ids += len(token_ids)

    def wrong(self, tokens: int) -> int:
        """Tokens lost, doubled or swapped in a stream that should have ``tokens``."""
        return self._wrong + abs(tokens - self._next) + abs(self._stamps - self._ids)


async def read_stamps(engine, tokens: int, late: list[float]) -> int:  # type: ignore[no-untyped-def]
    """Read one stream; note how late each piece came. Returns what was lost, doubled or swapped."""
    check = StampCheck()
    async with aclosing(engine.generate(Request((Message("user", "x"),), max_tokens=tokens))) as it:
        async for chunk in it:
            now = time.monotonic()
            stamps = [float(stamp) for stamp in chunk.text.split()]
            late += [now - stamp for stamp in stamps]
            check.take(stamps, chunk.token_ids)
    return check.wrong(tokens)


async def steady(
    folder: Path, streams: int, tokens_per_s: float, seconds: float
) -> tuple[list[float], int, float, int, float]:
    """``streams`` at ``tokens_per_s`` for some seconds: lateness (s), wrong tokens, growth of the
    node's memory after the first fifth, and of its open files, and tokens that came of those that
    the engine gives (share)."""
    async with stamped(folder, tokens_per_s) as fleet:
        engine = fleet.client()
        await engine.attest()
        late: list[float] = []
        process = fleet.nodes[0].process
        assert process is not None
        # A life of 30 s each, begun at different times, so that streams come and go. How many may
        # begin in a second is another question: each costs what some fifty tokens do.
        life_s, begin_within_s = min(30.0, seconds), streams / STARTS_PER_S
        ends = time.monotonic() + seconds
        wrong = 0

        async def worker(number: int) -> None:
            nonlocal wrong
            await asyncio.sleep(begin_within_s * random.Random(number).random())
            while (left := min(life_s, ends - time.monotonic())) > 0.5:
                wrong += await read_stamps(engine, max(1, int(left * tokens_per_s)), late)

        workers = [asyncio.create_task(worker(number)) for number in range(streams)]
        await asyncio.sleep(max(seconds / 5, min(125.0, seconds / 2)))
        begin_rss, begin_fds = rss_bytes(process), open_files(process)
        late.clear()
        from_s = time.monotonic()
        await asyncio.sleep(max(0.0, ends - time.monotonic() - 2))
        share = len(late) / (streams * tokens_per_s * (time.monotonic() - from_s))
        growth = rss_bytes(process) / begin_rss - 1
        fd_growth = open_files(process) - begin_fds
        await asyncio.gather(*workers)
        await engine.aclose()
    return late, wrong, growth, fd_growth, share


async def r1(scale: Scale, folder: Path) -> Measured:
    """256 streams at 20 tokens/s, sealed, over TLS, signed."""
    streams, seconds = scale.of(256, short=32), scale.seconds(600, short=6)
    late, wrong, growth, fds, _ = await steady(folder, streams, 20, seconds)
    return {
        "lost": wrong,
        "added_p99_ms": 1000 * quantile(late, 0.99),
        "rss_growth": growth,
        "fd_growth": fds,
    }


async def s1(scale: Scale, folder: Path) -> Measured:
    """What the service costs: 512 streams at 20 tokens/s."""
    streams, seconds = scale.of(512, short=64), scale.seconds(40, short=6)
    late, wrong, _, _, share = await steady(folder, streams, 20, seconds)
    return {"added_p99_ms": 1000 * quantile(late, 0.99), "aggregate": share, "lost": wrong}


async def s2(scale: Scale, folder: Path) -> Measured:
    """What the service adds to the first token of an engine that takes no time."""
    async with stamped(folder, 0) as fleet:
        engine = fleet.client()
        await engine.attest()
        taken: list[float] = []
        for _ in range(scale.of(300, short=30)):
            request = Request((Message("user", "x"),), max_tokens=1)
            history = await record(engine, request, "")
            taken.append(history.ttft_s)
        await engine.aclose()
    return {"ttft_added_p50_ms": 1000 * quantile(taken, 0.5)}


async def r5(scale: Scale, folder: Path) -> Measured:
    """Cancels: half once the node has taken a long prompt, which is computed then or waits, half
    while an answer is written."""
    count = scale.of(10_000, short=100)
    options = ("--echo-delay-s", "0.005", "--slots", "16", "--max-streams", "256")
    with running(folder, 1, *options) as fleet:
        await fleet.enrol()
        engines = [fleet.client(road=_telling) for _ in range(4)]
        for engine in engines:
            await engine.attest()
        node = fleet.nodes[0]
        assert node.process is not None
        early, rss = (max(20, count // 100), count // 5 // 20 * 20), list[int]()

        async def one(number: int) -> None:
            request = replace(ask(400 if number % 2 else 3000, number), max_tokens=1000)
            stream = engines[number % 4].generate(request)
            with suppress(OverspillError):
                await (anext(stream) if number % 2 else _cancelled_early(stream))
            await stream.aclose()

        for start in range(0, count, 20):
            await asyncio.gather(*(one(number) for number in range(start, start + 20)))
            if start + 20 in early:
                rss.append(rss_bytes(node.process))
        grown = [rss_bytes(node.process) - then for then in (rss[0], rss[-1])]
        # Free again: as many streams as there are slots begin at once.
        begin_s = time.monotonic()
        await asyncio.gather(*(record(engine, ask(3, n)) for n, engine in enumerate(engines * 4)))
        free_s = time.monotonic() - begin_s
        early_ones = node.cancelled_before_a_word()
        for engine in engines:
            await engine.aclose()
    return {
        "free_s": free_s,
        "in_prefill": early_ones / count,
        "rss_growth_mb": grown[0] / 1e6,
        "late_growth_mb": grown[1] / 1e6,
    }


_ADMITTED: ContextVar[asyncio.Event] = ContextVar("_ADMITTED")


def _telling(address: str, options: GrpcOptions) -> WatchedRoad:
    """A road that tells the task whose stream it carries that the node has taken it."""
    return WatchedRoad(address, options, answered=lambda: _ADMITTED.get(asyncio.Event()).set())


async def _cancelled_early(stream: AsyncGenerator[Chunk]) -> None:
    """Leave as soon as the node has taken the request, if its answer is not there yet."""
    admitted = asyncio.Event()
    _ADMITTED.set(admitted)
    first, told = asyncio.ensure_future(anext(stream)), asyncio.create_task(admitted.wait())
    await asyncio.wait({first, told}, return_when=asyncio.FIRST_COMPLETED)
    for task in (first, told):
        task.cancel()
    await asyncio.gather(first, told, return_exceptions=True)


async def r6(scale: Scale, folder: Path) -> Measured:
    """Four times what the node can do, in two lanes, beside what it can just do."""
    seconds, slots, tokens, step_s = scale.seconds(60, short=4), 16, 40, 0.01
    capacity = slots / (tokens * step_s)  # answers a second
    options = ("--echo-delay-s", str(step_s), "--slots", str(slots), "--max-streams", "24")
    with running(folder, 1, *options) as fleet:
        await fleet.enrol()
        alone = await _offer(fleet, capacity, seconds, tokens)
        loaded = await _offer(fleet, 4 * capacity, seconds, tokens)
    return {
        "goodput": loaded["done_per_s"] / alone["done_per_s"],
        "ttft_ratio": loaded["ttft_p99"] / alone["ttft_p99"],
        "shed_p99_ms": 1000 * loaded["shed_p99"],
        "batch_wait_s": loaded["batch_gap"],
    }


async def _offer(fleet: Fleet, per_s: float, seconds: float, tokens: int) -> dict[str, float]:
    """Requests at random times, every other one batch; clients that do not hold back."""
    from overspill.remote import RemoteOptions
    from overspill.transport.guard import GuardOptions

    open_doors = RemoteOptions(guard=GuardOptions(throttle_from=1 << 30, open_after=1 << 30))
    engines = [fleet.client(options=open_doors) for _ in range(8)]
    for engine in engines:
        await engine.attest()
    ttft: list[float] = []
    shed: list[float] = []
    batch_done: list[float] = [time.monotonic()]
    batch_over = batch_done[0]
    done = 0
    choice = random.Random(6)

    async def one(number: int) -> None:
        nonlocal done, batch_over
        lane = "batch" if number % 2 else "interactive"
        request = replace(ask(tokens - 6, number), lane=lane)
        begun = time.monotonic()
        history = await record(engines[number % len(engines)], request)
        if isinstance(history.error, BusyError):
            shed.append(time.monotonic() - begun)
        elif history.is_complete:
            done += 1
            if lane == "batch":
                batch_done.append(time.monotonic())
            else:
                ttft.append(history.ttft_s)
        if lane == "batch":
            batch_over = time.monotonic()

    tasks: list[asyncio.Task[None]] = []
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        tasks.append(asyncio.create_task(one(len(tasks))))
        await asyncio.sleep(choice.expovariate(per_s))
    await asyncio.gather(*tasks)
    lasted = time.monotonic() - begun
    for engine in engines:
        await engine.aclose()
    # To the end too: while there was batch work, an answer was due.
    gaps = [b - a for a, b in itertools.pairwise([*batch_done, batch_over])]
    return {
        "done_per_s": done / lasted,
        "ttft_p99": quantile(ttft, 0.99),
        "shed_p99": quantile(shed, 0.99) if shed else 0.0,
        "batch_gap": max(gaps, default=float("inf")),
    }


async def r17(scale: Scale, folder: Path) -> Measured:
    """A node that refuses everybody for a while, and what its clients make of that."""
    seconds = scale.seconds(60, short=4)
    options = ("--echo-delay-s", "0.02", "--slots", "1", "--max-streams", "1")
    with running(folder, 1, *options) as fleet:
        await fleet.enrol()
        holder, client = fleet.client(), fleet.client()
        held = holder.generate(replace(ask(3900, 1), max_tokens=4000))
        await anext(held)
        keep = asyncio.create_task(read_on(held))
        asked = 0
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            await record(client, ask(3, asked))
            asked += 1
            await asyncio.sleep(0.02)
        attempts = fleet.nodes[0].refused()
        keep.cancel()
        await asyncio.gather(keep, return_exceptions=True)
        await held.aclose()
        begun = time.monotonic()
        recovered = float("inf")
        while time.monotonic() - begun < 20:
            if (await record(client, ask(3, asked))).is_complete:
                recovered = time.monotonic() - begun
                break
            await asyncio.sleep(0.05)
        for engine in (holder, client):
            await engine.aclose()
    return {"attempts": attempts / asked, "recovered_s": recovered}
