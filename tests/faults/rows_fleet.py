"""Rows of the matrix about nodes that end: killed, upgraded, rotated, fuzzed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from faults.history import History, record
from faults.nodes import Fleet, running, write_certificate
from faults.rows_road import ask
from faults.scale import Measured, Scale, quantile

from overspill.errors import DeviceRejected, OverspillError
from overspill.transport.base import SealedHead
from overspill.transport.grpc import GrpcOptions, GrpcTransport


async def _under_load(
    fleet: Fleet, streams: int, disturb: Callable[[], object], characters: int
) -> list[History]:
    """``streams`` at a time without a pause, until ``disturb`` (a coroutine) is over."""
    clients = [fleet.client() for _ in range(8)]
    histories: list[History] = []
    stopped = asyncio.Event()

    async def worker(number: int) -> None:
        turn = 0
        while not stopped.is_set():
            request = ask(characters, number * 1000 + turn)
            histories.append(await record(clients[number % 8], request))
            turn += 1
            await asyncio.sleep(0.01)

    workers = [asyncio.create_task(worker(number)) for number in range(streams)]
    try:
        await disturb()  # type: ignore[misc]
    finally:
        stopped.set()
        await asyncio.gather(*workers)
        for client in clients:
            await client.aclose()
    return histories


async def r2(scale: Scale, folder: Path) -> Measured:
    """kill -9 over three replicas under load."""
    kills, streams = scale.of(50, short=3), scale.of(64, short=16)
    choice = random.Random(scale.seed("R2"))
    options = ("--echo-delay-s", "0.02", "--slots", "64", "--max-streams", "512")
    with running(folder, 3, *options) as fleet:
        await fleet.enrol()

        async def kill() -> None:
            for _ in range(kills):
                await asyncio.sleep(choice.uniform(0.2, 1.0))
                node = choice.choice(fleet.nodes)
                node.stop()
                await asyncio.to_thread(node.start)

        histories = await _under_load(fleet, streams, kill, 100)
    return told(histories) | {"resume_p99_s": quantile(_resumes(histories), 0.99)}


def _resumes(histories: list[History]) -> list[float]:
    return [history.longest_gap_s for history in histories if history.moves] or [0.0]


def told(histories: list[History]) -> Measured:
    complete = sum(history.is_complete for history in histories)
    for history in histories:
        if not history.is_complete:
            print(f"  {len(history.text)}/{len(history.expected)}: {history.error!r}", flush=True)
    return {
        "violations": sum(bool(history.violation) for history in histories),
        "complete": complete / len(histories),
    }


async def r8(scale: Scale, folder: Path) -> Measured:
    """A rolling upgrade: each node in turn is told to end, and comes back."""
    streams, rounds = scale.of(64, short=12), scale.of(5, short=1)
    options = ("--echo-delay-s", "0.02", "--slots", "64", "--max-streams", "512")
    with running(folder, 3, *options, "--drain-s", "0.5") as fleet:
        await fleet.enrol()
        exits: list[int] = []

        async def upgrade() -> None:
            for _ in range(rounds):
                for node in fleet.nodes:
                    await asyncio.sleep(0.5)
                    node.signal(signal.SIGTERM)
                    assert node.process is not None
                    exits.append(await asyncio.to_thread(node.process.wait, 30))
                    node.stop()
                    await asyncio.to_thread(node.start)

        histories = await _under_load(fleet, streams, upgrade, 100)
    violations = told(histories)["violations"]
    failed = sum(not history.is_complete for history in histories)
    return {
        "failed": failed,
        "violations": violations,
        "bad_exits": sum(map(bool, exits)),
    }


async def r11(scale: Scale, folder: Path) -> Measured:
    """Random bytes at every call of a node: typed codes, nothing hangs, the node lives."""
    count, choice = scale.of(20_000, short=300), random.Random(scale.seed("R11"))
    untyped = slow = 0
    with running(folder, 1) as fleet:
        road = GrpcTransport(
            fleet.nodes[0].listen, GrpcOptions(ca_pem=fleet.certificate.read_bytes())
        )
        bundle = await road.get_bundle()
        for _ in range(count):
            begun = time.monotonic()
            try:
                await _throw(road, choice, bundle.node_key_config)
            except OverspillError:
                pass
            except Exception as error:
                untyped += 1
                print(f"R11: {error!r}", flush=True)
            slow += time.monotonic() - begun > 1
        await road.aclose()
        await fleet.enrol()
        alive = await record(fleet.client(), ask(20, 1))
        internal = fleet.nodes[0].log.read_text().count("InternalError")
    return {
        "untyped": untyped + internal + (not alive.is_complete),
        "over_1_s": slow,
    }


async def _throw(road: GrpcTransport, choice: random.Random, config: bytes) -> None:
    import hashlib

    def noise(most: int) -> bytes:
        return choice.randbytes(choice.randrange(most))

    async def frames():  # type: ignore[no-untyped-def]
        for _ in range(choice.randrange(4)):
            yield noise(400)

    key = choice.choice([hashlib.sha256(config).digest(), noise(64)])
    head = SealedHead(key, choice.choice([noise(2000), choice.randbytes(1216), b""]))
    match choice.randrange(5):
        case 0:
            await road.cancel(noise(64), noise(64))
        case 1:
            await _drained(road.resume(noise(64), noise(64), choice.getrandbits(64)))
        case 2:
            await road.challenge(noise(64))
        case 3:
            await _drained(road.chat(head, frames()))
        case _:
            await _drained(road.enroll(head, frames()))


async def _drained(frames) -> None:  # type: ignore[no-untyped-def]
    async for _ in frames:
        pass


async def r13(scale: Scale, folder: Path) -> Measured:
    """A new certificate under load, and a device that is revoked."""
    with running(folder, 1, "--echo-delay-s", "0.01", "--slots", "64") as fleet:
        await fleet.enrol()
        old = fleet.certificate.read_bytes()
        shown: list[bytes] = []

        async def rotate() -> None:
            for _ in range(scale.of(10, short=2)):
                await asyncio.sleep(0.5)
                write_certificate(fleet.certificate, fleet.key_file)
                host, _, port = fleet.nodes[0].listen.rpartition(":")
                pem = await asyncio.to_thread(_certificate_of, host, int(port))
                shown.append(pem)

        histories = await _under_load(fleet, 8, rotate, 60)
        failed = sum(not history.is_complete for history in histories)
        engine = fleet.client()
        await record(engine, ask(10, 1))
        refused_s = await _revoked_after(fleet, engine)
        await engine.aclose()
    assert old not in shown, "new handshakes still got the old certificate"
    return {"failed": failed, "refused_s": refused_s}


def _certificate_of(host: str, port: int) -> bytes:
    import ssl

    return ssl.get_server_certificate((host, port)).encode()


async def _revoked_after(fleet: Fleet, engine) -> float:  # type: ignore[no-untyped-def]
    command = [sys.executable, "-m", "overspill_cloud", "devices", "revoke"]
    command += [fleet.key.thumbprint.hex(), "--state", str(fleet.folder / "state")]
    await asyncio.to_thread(
        subprocess.check_call, command, stdout=subprocess.DEVNULL, env=dict(os.environ)
    )
    begun = time.monotonic()
    while time.monotonic() - begun < 10:
        history = await record(engine, ask(5, 2))
        if isinstance(history.error, DeviceRejected):
            return time.monotonic() - begun
    return float("inf")


async def serving_status(fleet: Fleet, number: int) -> bytes:
    """What grpc.health.v1 says, as bytes: field 1 is 1 while it serves, 2 while it does not."""
    credentials = grpc.ssl_channel_credentials(fleet.certificate.read_bytes())
    async with grpc.aio.secure_channel(fleet.nodes[number].listen, credentials) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        return bytes(await check(b"", timeout=8))
