"""R16: a fleet of three on Ray, killed and upgraded under load as R2 and R8 do it without Ray."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray_site
from faults.history import History, record
from faults.nodes import FAR_UNIX, until
from faults.rows_fleet import told
from faults.rows_road import ask
from faults.scale import CannotRun, Measured, Scale

from overspill.identity.keys import SoftwareKey
from overspill.remote import RemoteEngine
from overspill.transport.grpc import GrpcTransport
from overspill.trust.policy import parse_policy
from overspill.trust.template import dev_policy
from overspill_cloud.fleet.addresses import AddressFile
from overspill_cloud.store import Store

REPLICAS = 3
START_S = 150


@dataclass
class RayFleet:
    """A fleet that runs, its nodes by what they printed, and a device that is enrolled."""

    folder: Path
    process: subprocess.Popen[str]
    dev_root: str
    key: SoftwareKey

    @property
    def addresses(self) -> tuple[str, ...]:
        return AddressFile(self.folder / "addresses").read()

    def client(self) -> RemoteEngine:
        """As an app that starts now finds them."""
        policy = dev_policy(bytes.fromhex(self.dev_root), {"echo": hashlib.sha256().digest()})
        roads = [GrpcTransport(address) for address in self.addresses]
        return RemoteEngine(roads, parse_policy(policy), self.key)


async def r16(scale: Scale, folder: Path) -> Measured:
    """Kills, then an upgrade, under load."""
    kills, streams = scale.of(50, short=2), scale.of(64, short=8)
    choice = random.Random(scale.seed("R16"))
    async with _fleet(folder) as fleet:
        replaced: list[float] = []

        async def kill() -> None:
            for _ in range(kills):
                await asyncio.sleep(choice.uniform(0.2, 1.0))
                replaced.append(await _kill_one(fleet, choice))

        async def upgrade() -> None:
            before = set(fleet.addresses)
            fleet.process.send_signal(signal.SIGHUP)
            await until(lambda: _are_new(fleet, before), START_S)

        killed = told(await _under_load(fleet, streams, kill))
        upgraded = await _under_load(fleet, streams, upgrade)
    return {
        "violations": killed["violations"] + told(upgraded)["violations"],
        "complete": killed["complete"],
        "replaced_s": max(replaced),
        "upgrade_failed": sum(not history.is_complete for history in upgraded),
    }


async def _kill_one(fleet: RayFleet, choice: random.Random) -> float:
    """Seconds until there are as many nodes as before, and none of them is the killed one."""
    address = choice.choice(fleet.addresses)
    os.kill(_listener(address), signal.SIGKILL)
    return await until(
        lambda: len(fleet.addresses) == REPLICAS and address not in fleet.addresses, START_S
    )


def _listener(address: str) -> int:
    """The process that listens there."""
    port = int(address.rpartition(":")[2])
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid:
            return int(one.pid)
    raise LookupError(f"nobody listens on {address}")


def _are_new(fleet: RayFleet, before: set[str]) -> bool:
    return len(fleet.addresses) == REPLICAS and before.isdisjoint(fleet.addresses)


async def _under_load(
    fleet: RayFleet, streams: int, disturb: Callable[[], Awaitable[None]]
) -> list[History]:
    histories: list[History] = []
    stopped = asyncio.Event()

    async def worker(number: int) -> None:
        turn = 0
        while not stopped.is_set():
            engine = fleet.client()
            histories.append(await record(engine, ask(100, number * 1000 + turn)))
            await engine.aclose()
            turn += 1

    workers = [asyncio.create_task(worker(number)) for number in range(streams)]
    try:
        await disturb()
    finally:
        stopped.set()
        await asyncio.gather(*workers)
    return histories


@asynccontextmanager
async def _fleet(folder: Path) -> AsyncGenerator[RayFleet]:
    environment = ray_site.environment()
    if environment is None:
        raise CannotRun(ray_site.MISSING)
    log = folder / "log"
    command = [sys.executable, "-m", "overspill_cloud", "fleet", "up", "--ray", "--json"]
    command += ["--replicas", str(REPLICAS), "--addresses", str(folder / "addresses"), "--"]
    command += ["--model", "echo=echo", "--state", str(folder / "state")]
    command += ["--echo-delay-s", "0.02", "--slots", "64", "--max-streams", "512"]
    process = await asyncio.to_thread(_start, command, log, environment)
    try:
        facts = await asyncio.wait_for(asyncio.to_thread(_first_line, process), START_S)
        if not facts:
            raise RuntimeError(log.read_text()[-2000:])
        fleet = RayFleet(folder, process, facts["nodes"][0]["dev_root"], _key())
        await until(lambda: len(fleet.addresses) == REPLICAS, START_S)
        await _enrol(fleet)
        yield fleet
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, 60)
        process.kill()


def _start(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    with log.open("w") as err:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=err, text=True, env=environment
        )


def _first_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = next((one for one in process.stdout if one.startswith("{")), "{}")
    return dict(json.loads(line))


def _key() -> SoftwareKey:
    return SoftwareKey.generate(FAR_UNIX)


async def _enrol(fleet: RayFleet) -> None:
    store = await asyncio.to_thread(Store, fleet.folder / "state")
    code = store.new_code(FAR_UNIX)
    store.close()
    engine = fleet.client()
    await engine.enroll(code)
    await engine.aclose()
