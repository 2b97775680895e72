"""Rows of the matrix about the road: cuts, resets, silence, damage, slow readers."""

from __future__ import annotations

import asyncio
import math
import random
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from faults import namespace
from faults.history import History, record, record_within
from faults.nodes import Fleet, running, until
from faults.proxy import FaultProxy
from faults.roads import NarrowRoad, Watch
from faults.scale import Measured, Scale, quantile, tell

from overspill.remote import RemoteEngine
from overspill.types.chat import Chunk, Message, Request

AT_ONCE = 8
"""Streams, each over a proxy of its own, where what happens to each counts and not when."""
EACH = ("--gather-s", "0")
"""A frame for each token: more that can be hit."""
FULL_BYTES = 128 << 10
"""When so much waits for a reader, nothing flows to him any more."""
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
        size = await _stream_bytes(fleet)
        gate, turn = asyncio.Semaphore(AT_ONCE), asyncio.Lock()

        async def one(kind: str, number: int) -> tuple[History, bool]:
            async with gate:
                return await _cut_once(fleet, kind, size, seed + number, turn)

        each = [one(kind, number) for kind in ("cut", "reset") for number in range(cuts)]
        cases = await asyncio.gather(*each)
    histories = [history for history, _ in cases]
    flaps = _link_flaps(scale, folder / "linked", scale.of(cuts, short=2), seed)
    histories += [history async for history in flaps]
    tell("R3", [str(history) for history in histories if not history.is_complete])
    return {
        "different": sum(bool(history.violation) for history in histories),
        "incomplete": sum(not history.is_complete for history in histories),
        "hit": sum(was_hit for _, was_hit in cases) / len(cases),
    }


async def _stream_bytes(fleet: Fleet) -> int:
    """So many bytes go to the client of a stream that nothing befalls."""
    async with FaultProxy(fleet.nodes[0].listen) as proxy:
        engine = fleet.client([proxy.address])
        await engine.attest()
        before = proxy.sent_bytes
        await record(engine, ask(120, 0))
        await engine.aclose()
        return proxy.sent_bytes - before


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
    watch: Watch | None = None,
    **limits: float,
) -> History:
    """One stream, in whose midst the link of the first node goes down for up to half a second, or
    for good."""
    choice = random.Random(seed)
    watch = watch or Watch()
    engine = await _who_prefers(fleet, fleet.nodes[0].listen, watch, **limits)
    asked = asyncio.create_task(record_within(60, engine, ask(120, seed)))
    await asyncio.sleep(choice.uniform(0, 0.5))
    try:
        watch.silence()
        link.set_link("down")
        if comes_back:
            await asyncio.sleep(choice.uniform(0, 0.5))
            link.set_link("up")
        return await asked
    finally:
        link.set_link("up")
        await engine.aclose()


async def _who_prefers(fleet: Fleet, address: str, watch: Watch, **limits: float) -> RemoteEngine:
    """A client whose own random order begins with this node."""
    while True:
        engine = fleet.client(road=watch.road, **limits)
        await engine.attest()
        if engine.address == address:
            return engine
        await engine.aclose()


async def _cut_once(
    fleet: Fleet, kind: str, size: int, seed: int, turn: asyncio.Lock
) -> tuple[History, bool]:
    """One stream whose connection is reset at a random one of its ``size`` bytes, or whose link is
    cut there for up to 0.3 s; and whether it had to go on over another connection. Under ``turn``
    it asks for the node's evidence, which is made for so many clients a second."""
    choice = random.Random(seed)
    async with FaultProxy(fleet.nodes[0].listen, seed) as proxy:
        engine = fleet.client([proxy.address])
        async with turn:
            await engine.attest()
        proxy.stays_down = kind == "cut"
        proxy.cut_after_bytes = choice.randrange(1, size)
        asked = asyncio.create_task(record(engine, ask(120, seed)))
        cut = asyncio.create_task(proxy.was_cut.wait())
        await asyncio.wait({asked, cut}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(choice.uniform(0, 0.3) if proxy.is_down else 0)
        proxy.is_down = False
        cut.cancel()
        history = await asked
        await engine.aclose()
        return history, proxy.connections > 1


async def r4(scale: Scale, folder: Path) -> Measured:
    """A frozen node and a black hole: seen, and the answer goes on elsewhere."""
    cases: list[tuple[History, float]] = []
    with running(folder, 2, "--echo-delay-s", "0.05", "--slots", "16") as fleet:
        await fleet.enrol()
        for kind in ("frozen", "black hole"):
            for number in range(scale.of(5, short=1)):
                cases += [await _silence_once(fleet, kind, number)]
    cases += [case async for case in _links_lost(folder / "linked", scale.of(5, short=1))]
    histories = [history for history, _ in cases]
    tell("R4", [str(history) for history in histories if not history.is_complete])
    return {
        "seen_s": max(seen_s for _, seen_s in cases),
        "failover_s": max(history.longest_silence_s for history in histories),
        "hung": sum(not history.is_complete for history in histories),
    }


async def _links_lost(folder: Path, count: int) -> AsyncGenerator[tuple[History, float]]:
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
            while True:
                watch = Watch()
                history = await link_down_once(fleet, link, number, comes_back=False, watch=watch)
                if watch.struck in ("", fleet.nodes[0].listen):
                    break
                print(f"R4: the stream was on {watch.struck} when the link went down", flush=True)
            yield history, watch.seen_s


async def _silence_once(fleet: Fleet, kind: str, seed: int) -> tuple[History, float]:
    """One stream whose node falls silent, and seconds until its client did something about it."""
    watch = Watch()
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(FaultProxy(node.listen)) for node in fleet.nodes]
        engine = fleet.client([proxy.address for proxy in proxies], road=watch.road)
        stack.push_async_callback(engine.aclose)
        asked = asyncio.create_task(record_within(30, engine, ask(60, seed)))
        await asyncio.sleep(0.8)
        serving = watch.address or engine.address
        first = next(at for at, proxy in enumerate(proxies) if proxy.address == serving)
        node = fleet.nodes[first]
        watch.silence()
        if kind == "frozen":
            node.signal(signal.SIGSTOP)
        else:
            proxies[first].black_hole(True)
        try:
            return await asked, watch.seen_s
        finally:
            node.signal(signal.SIGCONT)
            proxies[first].black_hole(False)


async def r12(scale: Scale, folder: Path) -> Measured:
    """Slow readers beside quick ones; then a few who stop, and to whom much is said."""
    count, waiting = scale.of(50, short=8), folder / "waiting"
    options = ("--echo-delay-s", "0.02", "--slots", "96", "--max-streams", "128")
    with running(folder, 1, *options, "--waiting", str(waiting)) as fleet:
        await fleet.enrol()
        before = await _gap_p99(fleet, 8)
        async with _slow_readers(fleet, count, pause_s=1.0):
            await asyncio.sleep(2)
            beside = await _gap_p99(fleet, 8)
        # With twenty alternatives to each token a stream says enough to fill every buffer.
        async with _slow_readers(fleet, 4, pause_s=600.0, top_logprobs=20):
            full_s = await until(
                lambda: _most_bytes(waiting) > FULL_BYTES, scale.seconds(40, short=10)
            )
            await asyncio.sleep(2)
    if math.isinf(full_s) and not scale.is_short:
        raise RuntimeError("the slow readers' buffers never filled")
    return {"others_p99": beside / before, "buffer_kib": _most_bytes(waiting) / 1024}


@asynccontextmanager
async def _slow_readers(
    fleet: Fleet, count: int, *, pause_s: float, **words: int
) -> AsyncGenerator[None]:
    """Within the block so many clients, each of a connection of its own, rest after each piece of
    their answers: what is not taken fills gRPC's window, and then waits in the node. Raises
    ``RuntimeError`` when one of them did not last so long."""
    engines = [fleet.client(road=NarrowRoad) for _ in range(count)]
    for engine in engines:
        await engine.attest()  # one by one: a node does not make fresh evidence for all at once
    tasks = [
        asyncio.create_task(read_on(engine.generate(replace(ask(3000, number), **words)), pause_s))
        for number, engine in enumerate(engines)
    ]
    yield
    ended = sum(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for engine in engines:
        await engine.aclose()
    if ended:
        raise RuntimeError(f"{ended} of {count} slow readers did not last")


async def read_on(stream: AsyncGenerator[Chunk], pause_s: float = 0.0) -> None:
    """Read a stream to its end."""
    async with aclosing(stream) as chunks:
        async for _ in chunks:
            await asyncio.sleep(pause_s)


def _most_bytes(waiting: Path) -> int:
    """What the node has told so far."""
    return int(waiting.read_text() or 0) if waiting.exists() else 0


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


FAULTS = ("cut", "flap", "delay", "slow", "corrupt", "truncate", "reset at", "close", "swallow")
KILL_EVERY = 40
"""One of so many schedules kills a node too; all that run at that time have it in theirs."""


async def r18(scale: Scale, folder: Path) -> Measured:
    """Random faults at random times, over three nodes: each token once, whatever happens."""
    count, seed = scale.of(1000, short=12), scale.seed("R18")
    with running(folder, 3, "--echo-delay-s", "0.004", "--slots", "32", *EACH) as fleet:
        await fleet.enrol()
        gate, killing = asyncio.Semaphore(AT_ONCE), asyncio.Lock()

        async def one(number: int) -> History:
            async with gate:
                return await _schedule(
                    fleet, seed + number, killing if number % KILL_EVERY == 0 else None
                )

        histories = await asyncio.gather(*(one(number) for number in range(count)))
    seeds = dict(enumerate(histories, start=seed))
    tell("R18", [f"seed {at}: {one.violation}" for at, one in seeds.items() if one.violation])
    tell("R18", [f"seed {at}: {one}" for at, one in seeds.items() if not one.is_complete])
    return {
        "violations": sum(bool(history.violation) for history in histories),
        "complete": sum(history.is_complete for history in histories) / count,
    }


async def _schedule(fleet: Fleet, seed: int, killing: asyncio.Lock | None) -> History:
    """One stream and its faults; with ``killing`` a node's death is among them."""
    choice = random.Random(seed)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as beside:
        proxies = [
            await stack.enter_async_context(FaultProxy(node.listen, seed)) for node in fleet.nodes
        ]
        engine = fleet.client([proxy.address for proxy in proxies], idle_timeout_s=3.0)
        stack.push_async_callback(engine.aclose)
        request = ask(choice.randrange(20, 200), seed)
        asked = asyncio.create_task(record_within(60, engine, request))
        if killing is not None:
            number, delay_s = choice.randrange(len(fleet.nodes)), choice.uniform(0, 0.5)
            beside.create_task(_kill_one(fleet, number, delay_s, killing))
        for _ in range(choice.randrange(1, 5)):
            await asyncio.sleep(choice.uniform(0, 0.25))
            await _fault(choice, choice.choice(proxies))
        return await asked


async def _kill_one(fleet: Fleet, number: int, delay_s: float, one_at_a_time: asyncio.Lock) -> None:
    """kill -9, and start it anew: the other nodes serve meanwhile."""
    async with one_at_a_time:
        await asyncio.sleep(delay_s)
        fleet.nodes[number].stop()
        await asyncio.to_thread(fleet.nodes[number].start)


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
        case "truncate":
            proxy.truncate_next = True
        case "close":
            proxy.close_all()
        case "reset at":
            proxy.cut_after_bytes = choice.randrange(1, 10_000)
        case "swallow":
            proxy.black_hole(True)
            await asyncio.sleep(choice.uniform(0, 0.3))
            proxy.black_hole(False)
