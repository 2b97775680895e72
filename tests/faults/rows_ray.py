"""R16: a fleet of three on Ray, killed and upgraded under load as R2 and R8 do it without Ray."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray_site
from faults.history import History, record
from faults.nodes import FAR_UNIX, until
from faults.rows_fleet import resumes, told
from faults.rows_road import ask
from faults.scale import Measured, NotInstalled, Scale, quantile
from faults.tls import write_certificate

from overspill.identity.keys import SoftwareKey
from overspill.remote import RemoteEngine
from overspill.transport.grpc import GrpcOptions, GrpcTransport
from overspill.trust.policy import parse_policy
from overspill.trust.template import dev_policy
from overspill_cloud.fleet.addresses import AddressFile
from overspill_cloud.store import Store

REPLICAS = 3
START_S = 150
DEVICES = 8
"""A node gives one device 16 streams at most, and all may come to the last one standing."""


@dataclass
class RayFleet:
    """A fleet that runs, its nodes by what they printed, and devices that are enrolled."""

    folder: Path
    process: subprocess.Popen[str]
    dev_root: str
    keys: Sequence[SoftwareKey]
    located: int = 0
    """Clients that learnt of nodes from a node."""

    @property
    def addresses(self) -> tuple[str, ...]:
        return AddressFile(self.folder / "addresses").read()

    def road(self, address: str) -> GrpcTransport:
        """TLS to a node."""
        tls = GrpcOptions(ca_pem=(self.folder / "tls.crt").read_bytes(), server_name="localhost")
        return GrpcTransport(address, tls)

    def client(self, known: Sequence[str], key: SoftwareKey) -> RemoteEngine:
        """An app that knows these nodes, and is told of the others by one of them."""
        policy = dev_policy(bytes.fromhex(self.dev_root), {"echo": hashlib.sha256().digest()})
        roads = [self.road(address) for address in known]
        return RemoteEngine(roads, parse_policy(policy), key, open_road=self.road)

    async def ask(self, number: int, key: SoftwareKey) -> History:
        """One request of an app that starts now, and knows two nodes."""
        known = random.Random(number).sample(self.addresses, k=min(2, len(self.addresses)))
        engine = self.client(known, key)
        try:
            return await record(engine, ask(100, number))
        finally:
            self.located += not set(engine.addresses) <= set(known)
            await engine.aclose()


async def r16(scale: Scale, folder: Path) -> Measured:
    """Kills, of nodes and of the replicas of Serve that hold them, then an upgrade, under load."""
    kills, streams = scale.of(50, short=2), scale.of(64, short=8)
    choice = random.Random(scale.seed("R16"))
    async with _fleet(folder) as fleet:
        replaced: list[float] = []

        async def kill() -> None:
            for number in range(kills):
                await asyncio.sleep(choice.uniform(0.2, 1.0))
                replaced.append(await _kill_one(fleet, choice, its_replica=number % 2 == 1))

        async def upgrade() -> None:
            before = set(fleet.addresses)
            fleet.process.send_signal(signal.SIGHUP)
            await until(lambda: _are_new(fleet, before), START_S)

        histories = await _under_load(fleet, streams, kill)
        killed = told("R16", histories)
        upgraded = await _under_load(fleet, streams, upgrade)
        print(f"R16: replaced after {[round(one, 1) for one in replaced]} s", flush=True)
    if not fleet.located:
        raise RuntimeError("no client was told of a node by another one")
    return {
        "violations": killed["violations"] + told("R16", upgraded)["violations"],
        "complete": killed["complete"],
        "resume_p99_s": quantile(resumes(histories), 0.99),
        "replaced_s": max(replaced),
        "upgrade_failed": sum(not history.is_complete for history in upgraded),
    }


async def _kill_one(fleet: RayFleet, choice: random.Random, *, its_replica: bool) -> float:
    """kill -9 of a node, or of the worker of Ray that holds it. Seconds until there are as many
    nodes as before without it."""
    address, victim = await _some_node(fleet, choice)
    if its_replica:
        victim = _its_own(fleet, victim.parent())
    victim.kill()
    return await until(lambda: len(set(fleet.addresses) - {address}) >= REPLICAS, START_S)


def _its_own(fleet: RayFleet, process: psutil.Process | None) -> psutil.Process:
    """The process, which Ray started for this fleet and for nobody else."""
    if process not in psutil.Process(fleet.process.pid).children(recursive=True):
        raise LookupError(f"{process} is no worker of this fleet")
    return process


async def _some_node(fleet: RayFleet, choice: random.Random) -> tuple[str, psutil.Process]:
    """One that serves: the list names a node for a moment after it has gone."""
    async with asyncio.timeout(START_S):
        while True:
            address = choice.choice(fleet.addresses)
            if (process := _listener(address)) is not None:
                return address, process
            print(f"R16: {address} is listed, and nobody listens there", flush=True)
            await asyncio.sleep(0.2)


def _listener(address: str) -> psutil.Process | None:
    """The process that listens there."""
    port = int(address.rpartition(":")[2])
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid:
            return psutil.Process(one.pid)
    return None


def _are_new(fleet: RayFleet, before: set[str]) -> bool:
    return len(fleet.addresses) == REPLICAS and before.isdisjoint(fleet.addresses)


async def _under_load(
    fleet: RayFleet, streams: int, disturb: Callable[[], Awaitable[None]]
) -> list[History]:
    histories: list[History] = []
    stopped = asyncio.Event()

    async def worker(number: int) -> None:
        turn, key = 0, fleet.keys[number % DEVICES]
        while not stopped.is_set():
            histories.append(await fleet.ask(number * 1000 + turn, key))
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
        raise NotInstalled(ray_site.MISSING)
    log = folder / "log"
    write_certificate(folder / "tls.crt", folder / "tls.key")
    command = [sys.executable, "-m", "overspill_cloud", "fleet", "up", "--ray", "--json"]
    command += ["--replicas", str(REPLICAS), "--addresses", str(folder / "addresses"), "--"]
    command += ["--model", "echo=echo", "--state", str(folder / "state")]
    command += ["--tls-cert", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key")]
    command += ["--echo-delay-s", "0.02", "--slots", "64", "--max-streams", "512"]
    process = await asyncio.to_thread(_start, command, log, environment)
    try:
        facts = await asyncio.wait_for(asyncio.to_thread(_first_line, process), START_S)
        if not facts:
            raise RuntimeError(log.read_text()[-2000:])
        fleet = RayFleet(folder, process, facts["nodes"][0]["dev_root"], _keys())
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


def _keys() -> list[SoftwareKey]:
    return [SoftwareKey.generate(FAR_UNIX) for _ in range(DEVICES)]


async def _enrol(fleet: RayFleet) -> None:
    store = await asyncio.to_thread(Store, fleet.folder / "state")
    codes = [store.new_code(FAR_UNIX) for _ in fleet.keys]
    store.close()
    for key, code in zip(fleet.keys, codes, strict=True):
        engine = fleet.client(fleet.addresses, key)
        await engine.enroll(code)
        await engine.aclose()
