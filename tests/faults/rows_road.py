"""Rows of the matrix about the road: cuts, resets, silence, damage, slow readers."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path

from faults import namespace
from faults.history import History, record, record_within
from faults.nodes import Fleet, running
from faults.proxy import FaultProxy
from faults.scale import Measured, Scale, quantile

from overspill.remote import RemoteEngine
from overspill.types.chat import Message, Request

AT_ONCE = 8
"""Streams, each over a proxy of its own, where what happens to each counts and not when."""
EACH = ("--gather-s", "0")
"""A frame for each token: more that can be hit."""
WORDS = "".join(f"{number:03x} " for number in range(4096))
"""Text in which nothing repeats for long: it is not guessed ahead."""


def ask(characters: int, seed: int) -> Request:
    """A request whose answer has about so many tokens (``echo``: one a character)."""
    begin = random.Random(seed).randrange(len(WORDS) - characters)
    return Request((Message("user", WORDS[begin : begin + characters]),), max_tokens=2048)


async def r3(scale: Scale, folder: Path) -> Measured:
    """Links cut and connections reset at random bytes: the transcript of a fault-free run."""
    cuts = scale.of(200, short=6)
    seed = scale.seed("R3")
    with running(folder, 1, "--echo-delay-s", "0.005", "--slots", "16", *EACH) as fleet:
        await fleet.enrol()
        different = failed = resumed = 0
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(kind: str, number: int) -> tuple[History, int]:
            async with gate:
                return await _cut_once(fleet, kind, seed + number)

        each = [one(kind, number) for kind in ("cut", "reset") for number in range(cuts)]
        for history, connections in await asyncio.gather(*each):
            different += bool(history.violation)
            failed += not history.is_complete
            resumed += connections > 1
    async for history in _link_flaps(scale, folder / "linked", scale.of(cuts, short=2), seed):
        different += bool(history.violation)
        failed += not history.is_complete
    print(f"R3: {resumed} of {2 * cuts} streams went on over another connection", flush=True)
    return {"different": different, "incomplete": failed}


async def _link_flaps(scale: Scale, folder: Path, count: int, seed: int) -> AsyncGenerator[History]:
    """Streams over a link that is taken down and put up again; none where that is not possible."""
    if not namespace.is_possible():
        print(f"R3: {namespace.MISSING}", flush=True)
        return
    with (
        namespace.linked_namespace() as link,
        running(folder, 1, "--echo-delay-s", "0.005", "--slots", "16", *EACH, behind=link) as fleet,
    ):
        await fleet.enrol()
        for number in range(count):
            yield await link_down_once(fleet, link, seed + number)


async def link_down_once(
    fleet: Fleet,
    link: namespace.LinkedNamespace,
    seed: int,
    *,
    comes_back: bool = True,
    **limits: float,
) -> History:
    """One stream, in whose midst the link of the first node goes down for up to half a second, or
    for good."""
    choice = random.Random(seed)
    engine = await _who_prefers(fleet, fleet.nodes[0].listen, **limits)
    asked = asyncio.create_task(record_within(60, engine, ask(120, seed)))
    await asyncio.sleep(choice.uniform(0, 0.5))
    try:
        link.set_link("down")
        if comes_back:
            await asyncio.sleep(choice.uniform(0, 0.5))
            link.set_link("up")
        return await asked
    finally:
        link.set_link("up")
        await engine.aclose()


async def _who_prefers(fleet: Fleet, address: str, **limits: float) -> RemoteEngine:
    """A client whose own random order begins with this node."""
    while True:
        engine = fleet.client(**limits)
        await engine.attest()
        if engine.address == address:
            return engine
        await engine.aclose()


async def _cut_once(fleet: Fleet, kind: str, seed: int) -> tuple[History, int]:
    choice = random.Random(seed)
    async with FaultProxy(fleet.nodes[0].listen, seed) as proxy:
        engine = fleet.client([proxy.address])
        await engine.attest()
        running_one = asyncio.create_task(record(engine, ask(120, seed)))
        if kind == "reset":
            proxy.cut_after_bytes = choice.randrange(1, 20_000)
        else:
            await asyncio.sleep(choice.uniform(0, 0.5))
            proxy.is_down = True
            proxy.cut()
            await asyncio.sleep(choice.uniform(0, 0.3))
            proxy.is_down = False
        history = await running_one
        await engine.aclose()
        return history, proxy.connections


async def r4(scale: Scale, folder: Path) -> Measured:
    """A frozen node and a black hole: seen, and the answer goes on elsewhere."""
    gaps: list[float] = []
    hung = 0
    with running(folder, 2, "--echo-delay-s", "0.05", "--slots", "16") as fleet:
        await fleet.enrol()
        for kind in ("frozen", "black hole"):
            for number in range(scale.of(5, short=1)):
                history = await _silence_once(fleet, kind, number)
                hung += not history.is_complete
                gaps.append(history.longest_gap_s)
    async for history in _links_lost(folder / "linked", scale.of(5, short=1)):
        hung += not history.is_complete
        gaps.append(history.longest_gap_s)
    return {"failover_s": max(gaps), "hung": hung}


async def _links_lost(folder: Path, count: int) -> AsyncGenerator[History]:
    """Streams whose node's link goes down for good, with another node beside."""
    if not namespace.is_possible():
        print(f"R4: {namespace.MISSING}", flush=True)
        return
    with (
        namespace.linked_namespace() as link,
        running(folder, 2, "--echo-delay-s", "0.05", "--slots", "16", behind=link) as fleet,
    ):
        await fleet.enrol()
        for number in range(count):
            yield await link_down_once(fleet, link, number, comes_back=False)


async def _silence_once(fleet: Fleet, kind: str, seed: int) -> History:
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(FaultProxy(node.listen)) for node in fleet.nodes]
        engine = fleet.client([proxy.address for proxy in proxies])
        stack.push_async_callback(engine.aclose)
        asked = asyncio.create_task(record_within(30, engine, ask(60, seed)))
        await asyncio.sleep(0.8)
        # The one that the client prefers, found by its connections.
        first = next(at for at, proxy in enumerate(proxies) if proxy.address == engine.address)
        node = fleet.nodes[first]
        if kind == "frozen":
            node.signal(signal.SIGSTOP)
        else:
            proxies[first].black_hole(True)
        try:
            return await asked
        finally:
            node.signal(signal.SIGCONT)
            proxies[first].black_hole(False)


async def r12(scale: Scale, folder: Path) -> Measured:
    """Slow readers beside quick ones."""
    count = scale.of(50, short=8)
    options = ("--echo-delay-s", "0.02", "--slots", "96", "--max-streams", "128")
    with running(folder, 1, *options) as fleet:
        await fleet.enrol()
        before = await _gap_p99(fleet, 8)
        async with FaultProxy(fleet.nodes[0].listen) as proxy:
            proxy.bytes_per_s = 200.0
            slow = [fleet.client([proxy.address]) for _ in range(count)]
            tasks = [
                asyncio.create_task(record(engine, ask(1500, number)))
                for number, engine in enumerate(slow)
            ]
            await asyncio.sleep(2)
            beside = await _gap_p99(fleet, 8)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for engine in slow:
                await engine.aclose()
    return {"others_p99": beside / before}


async def _gap_p99(fleet: Fleet, count: int) -> float:
    engine = fleet.client()
    histories = await asyncio.gather(*(record(engine, ask(150, n)) for n in range(count)))
    await engine.aclose()
    gaps = [
        later - earlier
        for history in histories
        for earlier, later in zip(history.times_s, history.times_s[1:], strict=False)
    ]
    return quantile(gaps, 0.99)


FAULTS = ("cut", "flap", "delay", "slow", "corrupt", "truncate", "reset at", "close", "kill")


async def r18(scale: Scale, folder: Path) -> Measured:
    """Random faults at random times, over two nodes: each token exactly once, whatever happens."""
    count, seed = scale.of(1000, short=12), scale.seed("R18")
    violations = incomplete = 0
    with running(folder, 2, "--echo-delay-s", "0.004", "--slots", "32", *EACH) as fleet:
        await fleet.enrol()
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> History:
            async with gate:
                return await _schedule(fleet, seed + number)

        for number, history in enumerate(
            await asyncio.gather(*(one(number) for number in range(count)))
        ):
            if history.violation:
                violations += 1
                print(f"R18: seed {seed + number}: {history.violation}", flush=True)
            if not history.is_complete:
                incomplete += 1
                print(f"R18: seed {seed + number}: {history.error!r}", flush=True)
    return {"violations": violations, "complete": 1 - incomplete / count}


async def _schedule(fleet: Fleet, seed: int) -> History:
    choice = random.Random(seed)
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(FaultProxy(node.listen, seed)) for node in fleet.nodes
        ]
        engine = fleet.client([proxy.address for proxy in proxies], idle_timeout_s=3.0)
        stack.push_async_callback(engine.aclose)
        request = ask(choice.randrange(20, 200), seed)
        asked = asyncio.create_task(record_within(60, engine, request))
        for _ in range(choice.randrange(1, 5)):
            await asyncio.sleep(choice.uniform(0, 0.25))
            await _fault(choice, choice.choice(proxies))
        return await asked


async def _fault(choice: random.Random, proxy: FaultProxy) -> None:
    match choice.choice(FAULTS):
        case "cut":
            proxy.cut()
        case "flap":
            proxy.is_down = True
            proxy.cut()
            await asyncio.sleep(choice.uniform(0, 0.4))
            proxy.is_down = False
        case "delay":
            proxy.delay_s = choice.uniform(0, 0.03)
        case "slow":
            proxy.bytes_per_s = choice.uniform(20_000, 100_000)
        case "corrupt":
            proxy.corrupt_next = True
        case "truncate" | "close":
            proxy.close_all()
        case "reset at":
            proxy.cut_after_bytes = choice.randrange(1, 10_000)
        case "kill":
            proxy.black_hole(True)
            await asyncio.sleep(choice.uniform(0, 0.3))
            proxy.black_hole(False)
