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
from faults.nodes import FAR_UNIX, Fleet, running
from faults.rows_road import ask
from faults.scale import Measured, Scale, quantile, tell
from faults.tls import Authority

from overspill.errors import DeviceRejected
from overspill.identity.keys import SoftwareKey


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
    return told("R2", histories) | {"resume_p99_s": quantile(resumes(histories), 0.99)}


def resumes(histories: list[History]) -> list[float]:
    """The longest silence (s) of each stream that moved; one that moved before its first token
    waited for that."""
    return [history.longest_silence_s for history in histories if history.moves] or [0.0]


def told(row: str, histories: list[History]) -> Measured:
    complete = sum(history.is_complete for history in histories)
    tell(row, [str(history) for history in histories if not history.is_complete])
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
    violations = told("R8", histories)["violations"]
    failed = sum(not history.is_complete for history in histories)
    return {
        "failed": failed,
        "violations": violations,
        "bad_exits": sum(map(bool, exits)),
    }


async def r13(scale: Scale, folder: Path) -> Measured:
    """New certificates and new keys of the node under load, for connections that stay and for ones
    that come; a device that changes its key in mid-stream; and then one that is revoked."""
    options = ("--echo-delay-s", "0.01", "--slots", "64", "--renew-s", "0.4")
    with running(folder, 1, *options) as fleet:
        await fleet.enrol()
        authority, old = Authority(), fleet.certificate.read_bytes()
        fleet.trusted = old + authority.pem
        shown: list[bytes] = []
        more: list[History] = []

        async def rotate() -> None:
            changing = asyncio.create_task(_change_key(fleet, scale.of(5, short=1), more))
            for _ in range(scale.of(20, short=3)):
                await asyncio.sleep(0.3)
                authority.write(fleet.certificate, fleet.key_file)
                host, _, port = fleet.nodes[0].listen.rpartition(":")
                shown.append(await asyncio.to_thread(_certificate_of, host, int(port)))
                newcomer = fleet.client()
                more.append(await record(newcomer, ask(20, len(more))))
                await newcomer.aclose()
            await changing

        histories = [*await _under_load(fleet, 8, rotate, 60), *more]
        tell("R13", [str(history) for history in histories if not history.is_complete])
        failed = sum(not history.is_complete for history in histories)
        engine = fleet.client()
        await record(engine, ask(10, 1))
        refused_s = await _revoked_after(fleet, engine)
        await engine.aclose()
        renewed = fleet.nodes[0].log.read_text().count('"new_key": true')
    if old in shown:
        raise RuntimeError("new handshakes still got the old certificate")
    if not renewed:
        raise RuntimeError("the node never made new keys")
    return {"failed": failed, "refused_s": refused_s}


async def _change_key(fleet: Fleet, times: int, histories: list[History]) -> None:
    """A device goes on under another key, while its answer is under way and after it."""
    key = SoftwareKey.generate(FAR_UNIX)
    await fleet.enrol(key)
    engine = fleet.client(key=key)
    for turn in range(times):
        under_way = asyncio.create_task(record(engine, ask(100, turn)))
        await asyncio.sleep(0.3)
        until_unix = int(time.time()) + 3600
        await engine.rotate(SoftwareKey.generate(FAR_UNIX), not_after_unix=until_unix)
        histories += [await under_way, await record(engine, ask(20, turn))]
    await engine.aclose()


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
