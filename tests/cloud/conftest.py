"""A whole node, in this process or in one of its own, and clients for it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from overspill.engines.base import Engine
from overspill.engines.options import EngineOptions
from overspill.engines.registry import open_engine
from overspill.exchange import ExchangeLimits
from overspill.identity.keys import SoftwareKey
from overspill.remote import RemoteEngine, RemoteOptions
from overspill.transport.base import Transport
from overspill.transport.grpc import GrpcTransport
from overspill.transport.memory import MemoryTransport, Taps
from overspill.trust.policy import TrustPolicy, parse_policy
from overspill.trust.template import dev_policy
from overspill.types.chat import Chunk, Message, Request
from overspill_cloud import events
from overspill_cloud.admission import Admission, AdmissionLimits, Database
from overspill_cloud.attester.dev import UnsafeDevAttester
from overspill_cloud.keys import KeyRing
from overspill_cloud.measure import measure_node
from overspill_cloud.models import ServedModel
from overspill_cloud.node import Node, NodeParts
from overspill_cloud.store import Store, open_backend
from overspill_cloud.store.schema import upgrade
from overspill_cloud.streams import StreamLimits

FAR = 1 << 40


@dataclass
class Clock:
    """Unix seconds that a test can move."""

    offset_s: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset_s


def device_key() -> SoftwareKey:
    return SoftwareKey.generate(FAR)


def ask(text: str = "hello", **options: Any) -> Request:
    return Request((Message("user", text),), **options)


async def collect(engine: Engine, request: Request) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request)]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@dataclass
class World:
    """A node in this process; ``clock`` is the node's own."""

    node: Node
    keys: KeyRing
    store: Store
    admission: Admission
    policy: TrustPolicy
    clock: Clock
    log: io.StringIO
    models: dict[str, ServedModel]
    engines: list[RemoteEngine] = field(default_factory=list)

    def client(
        self,
        transport: Transport | None = None,
        *,
        key: SoftwareKey | None = None,
        clock: Callable[[], float] | None = None,
        policy: TrustPolicy | None = None,
        taps: Taps | None = None,
        **limits: float,
    ) -> RemoteEngine:
        engine = RemoteEngine(
            transport or MemoryTransport(self.node, taps),
            policy or self.policy,
            key or device_key(),
            RemoteOptions(limits=ExchangeLimits(**limits)),
            clock=clock or self.clock,
        )
        self.engines.append(engine)
        return engine

    async def enrolled(self, transport: Transport | None = None, **options: Any) -> RemoteEngine:
        """A client whose device is enrolled, over an untouched road."""
        key = options.setdefault("key", device_key())
        await self.client(key=key).enroll(self.code())
        return self.client(transport, **options)

    def code(self) -> str:
        return self.store.new_code(FAR)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


@asynccontextmanager
async def world(
    state: Path,
    *engines: Engine,
    admission: AdmissionLimits | None = None,
    streams: StreamLimits | None = None,
    database: str | None = None,
) -> AsyncGenerator[World]:
    """A node over the given engines (``echo`` without any), for clients in this process."""
    clock, log = Clock(), io.StringIO()
    async with AsyncExitStack() as stack:
        served = {}
        for engine in engines or (open_engine("echo"),):
            await stack.enter_async_context(engine)
            served[engine.card.name] = ServedModel(engine.card.name, engine, None)
        event_log = events.EventLog(clock, log)
        kept = Database(Store(state, database), event_log.write)
        stack.callback(kept.close)
        await asyncio.to_thread(state.mkdir, mode=0o700, exist_ok=True)
        attester = UnsafeDevAttester.from_file(state / "dev.key")
        measured = measure_node(list(served.values()), {})
        keys = KeyRing(attester, measured, list(served.values()), clock, event_log)
        gate = Admission(kept, clock, admission or AdmissionLimits())
        node = Node(
            NodeParts(
                models=served,
                keys=keys,
                admission=gate,
                database=kept,
                log=event_log,
                clock=clock,
                limits=streams or StreamLimits(detach_grace_s=0.0),
            )
        )
        policy = parse_policy(
            dev_policy(attester.root, {name: model.sha256 for name, model in served.items()})
        )
        here = World(node, keys, kept.store, gate, policy, clock, log, served)
        try:
            yield here
        finally:
            for engine in here.engines:
                await engine.aclose()
            await node.drain(0.0)


@dataclass
class NodeProcess:
    """A real ``overspill-cloud serve``."""

    process: subprocess.Popen[str]
    started: dict[str, Any]
    state: Path
    log: Path

    @property
    def listen(self) -> str:
        return str(self.started["listen"])

    def policy(self, **models: bytes) -> TrustPolicy:
        named = models or {"echo": hashlib.sha256().digest()}
        return parse_policy(dev_policy(bytes.fromhex(self.started["dev_root"]), named))

    def client(self, key: SoftwareKey, policy: TrustPolicy | None = None) -> RemoteEngine:
        return RemoteEngine(GrpcTransport(self.listen), policy or self.policy(), key)

    def code(self) -> str:
        store = Store(self.state)
        try:
            return store.new_code(FAR)
        finally:
            store.close()

    async def enrolled(
        self, policy: TrustPolicy | None = None, key: SoftwareKey | None = None
    ) -> RemoteEngine:
        engine = self.client(key or device_key(), policy)
        await engine.enroll(self.code())
        return engine


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "overspill_cloud", *arguments]


@pytest.fixture
def start_node(tmp_path: Path, repository: Path) -> Iterator[Callable[..., NodeProcess]]:
    """``start_node("--echo-delay-s", "0.05", model="echo=echo")``: a node in its own process."""
    running: list[subprocess.Popen[str]] = []

    def start(
        *options: str,
        model: str = "echo=echo",
        listen: str = "127.0.0.1:0",
        environment: dict[str, str] | None = None,
    ) -> NodeProcess:
        state = tmp_path / "state"
        log = tmp_path / f"node-{len(running)}.log"
        arguments = ["serve", "--model", model, "--listen", listen, "--state", str(state)]
        with log.open("w") as err:
            process = subprocess.Popen(
                command(*arguments, "--json", *options),
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env=environment or dict(os.environ),
                cwd=repository,
            )
        running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        return NodeProcess(process, json.loads(line), state, log)

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str | None:
    """Each database in turn: None for a file in the state folder, or the URL of an empty one on a
    real server, brought to the schema."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("postgres").new_database()
    with closing(open_backend(Path(), url)) as backend:
        upgrade(backend)
    return url


@pytest.fixture
def open_store(database: str | None, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Opens replicas' stores over one database."""
    with ExitStack() as opened:
        yield lambda: opened.enter_context(closing(Store(tmp_path / "state", database)))


@pytest.fixture
def store(open_store: Callable[[], Store]) -> Store:
    """One replica's."""
    return open_store()


@pytest.fixture
def cloud() -> SimpleNamespace:
    """The helpers of this room: test folders are no packages."""
    return SimpleNamespace(
        world=world,
        ask=ask,
        collect=collect,
        text_of=text_of,
        device_key=device_key,
        command=command,
        Clock=Clock,
        engine=lambda **options: open_engine("echo", options=EngineOptions(**options)),
    )
