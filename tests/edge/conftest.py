"""A real daemon for the tests: real sockets, the real client, the real scheduler over `echo`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import httpx2
import openai
import pytest

from overspill.client import AsyncOverspill
from overspill.config import Settings, child_environment, load_settings
from overspill.engines.backend import Interrupted
from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.scheduled import ScheduledEngine
from overspill.trust.template import dev_policy
from overspill.types.chat import Privacy
from overspill_cloud.app import ModelSpec, NodeOptions
from overspill_cloud.app import serve as serve_node
from overspill_cloud.store import Store as NodeStore
from overspill_edge.app import Daemon, Ready, ServeOptions
from overspill_edge.listen import TcpAddress
from overspill_edge.tokens import Scope, TokenStore, user_tokens
from overspill_edge.work import HttpLimits

PATIENCE_S = 20.0


class WatchedEcho(EchoBackend):
    """`echo` that counts its steps and can be held: what a test needs to see of a model."""

    def __init__(self, options: EchoOptions) -> None:
        super().__init__(options)
        self.steps = 0
        self.held_at: int | None = None
        self._released = threading.Event()
        self._stopped = threading.Event()

    def hold(self, *, after_steps: int = 0) -> None:
        """Stand still once ``after_steps`` more steps were made."""
        self._released.clear()
        self.held_at = self.steps + after_steps

    def release(self) -> None:
        self.held_at = None
        self._released.set()

    def run(self, rows: Any) -> Any:
        self._stopped.clear()
        while self.held_at is not None and self.steps >= self.held_at:
            if self._released.wait(0.005):
                break
            if self._stopped.is_set():
                raise Interrupted
        self.steps += 1
        return super().run(rows)

    def interrupt(self) -> None:
        self._stopped.set()
        super().interrupt()


@dataclass(frozen=True)
class Running:
    """A daemon in this process, and how to reach it."""

    ready: Ready
    daemon: Daemon
    engine: ScheduledEngine
    backend: WatchedEcho
    tokens: TokenStore
    client: AsyncOverspill

    def http(self, *, tcp: bool = False, **headers: str) -> httpx2.AsyncClient:
        """A plain HTTP client, on the Unix socket unless told otherwise."""
        if tcp:
            return httpx2.AsyncClient(base_url=f"http://{self.ready.tcp}", headers=headers)
        transport = httpx2.AsyncHTTPTransport(uds=self.ready.socket)
        return httpx2.AsyncClient(
            base_url="http://localhost", transport=transport, headers=headers, timeout=60
        )

    def openai(self, token: str | None = None) -> openai.AsyncOpenAI:
        """OpenAI's own client: over TCP with a token, on the Unix socket without."""
        if token is not None:
            base = f"http://{self.ready.tcp}/v1"
            return openai.AsyncOpenAI(base_url=base, api_key=token, max_retries=0)
        return openai.AsyncOpenAI(
            base_url="http://localhost/v1",
            api_key="none",
            max_retries=0,
            http_client=self.http(),
        )

    def token(self, scopes: tuple[Scope, ...] = (Scope.INFER,), app: str = "notes") -> str:
        return self.tokens.issue(app, scopes)[0]


StartDaemon = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def home() -> Iterator[Path]:
    """A short private folder: a socket's path may hold 103 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ovs"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def settings(home: Path) -> Settings:
    environ = {"OVERSPILL_HOME": str(home), "OVERSPILL_MODEL": "echo"}
    return replace(load_settings(environ=environ), isolate=False)


@pytest.fixture
def start_daemon(settings: Settings) -> StartDaemon:
    """``async with start_daemon() as running``: a daemon that is drained at the end."""

    @asynccontextmanager
    async def start(
        *,
        limits: HttpLimits | None = None,
        echo: EchoOptions | None = None,
        scheduler: SchedulerOptions | None = None,
        origins: tuple[str, ...] = (),
        drain_s: int = 30,
        settings: Settings = settings,
    ) -> AsyncIterator[Running]:
        backend = WatchedEcho(echo or EchoOptions())
        engine = ScheduledEngine(
            lambda: backend,
            name="echo",
            runtime="echo",
            options=EngineOptions(scheduler=scheduler or SchedulerOptions()),
        )
        client = AsyncOverspill("daemon", settings=settings, device=engine)
        options = ServeOptions(
            settings=settings,
            tcp=TcpAddress("127.0.0.1", 0),
            origins=origins,
            drain_s=drain_s,
            limits=limits or HttpLimits(),
        )
        daemon = Daemon(options, client=client)
        ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(daemon.run(ready.set_result))
        await asyncio.wait({ready, running}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await running
        try:
            yield Running(
                ready.result(), daemon, engine, backend, user_tokens(settings.places), client
            )
        finally:
            backend.release()
            daemon.stop()
            await asyncio.wait_for(running, PATIENCE_S)

    return start


@asynccontextmanager
async def _node(home: Path, settings: Settings) -> AsyncIterator[tuple[Settings, str, Any]]:
    options = NodeOptions(
        models=(ModelSpec("river", "echo"),),
        listen=f"unix:{home}/node.sock",
        state=home / "node",
    )
    async with serve_node(options) as serving:
        policy, routing = home / "trust.toml", home / "routing.toml"
        nothing = hashlib.sha256().digest()  # echo has no file
        policy.write_text(dev_policy(bytes.fromhex(serving.dev_root), {"river": nothing}))
        routing.write_text('version = "stay where it can be done"\nthreshold = 1.0\n')
        store = NodeStore(home / "node")
        code = store.new_code(1 << 40)
        store.close()
        ours = replace(settings, privacy=Privacy.ANY, device_key="file", routing_policy=routing)
        yield ours.with_cloud(serving.listen, trust_policy=policy), code, serving


@pytest.fixture
def node_at(home: Path, settings: Settings) -> Callable[[], AbstractAsyncContextManager[Any]]:
    """``async with node_at() as (settings, code)``: a real node that serves `echo` as river."""

    @asynccontextmanager
    async def open_node() -> AsyncIterator[tuple[Settings, str]]:
        async with _node(home, settings) as (ours, code, _):
            yield ours, code

    return open_node


@pytest.fixture
def node_with_engine(home: Path, settings: Settings) -> Callable[[], Any]:
    """As ``node_at``, with the node's engine as a third."""

    @asynccontextmanager
    async def open_node() -> AsyncIterator[tuple[Settings, str, Any]]:
        async with _node(home, settings) as (ours, code, serving):
            yield ours, code, serving.models["river"].engine

    return open_node


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait until it holds; how long that takes is not what a test is about."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            result = condition()
            if await result if asyncio.iscoroutine(result) else result:
                return
            await anyio.sleep(0.01)


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[[Callable[[], Any]], Any]:
    return eventually


@dataclass
class Command:
    """The `overspill` command in a process of its own, on a home of its own."""

    home: Path

    def environment(self) -> dict[str, str]:
        return child_environment({"OVERSPILL_HOME": str(self.home), "OVERSPILL_MODEL": "echo"})

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "overspill.cli.main", *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
        """A daemon that has said that it is ready, and what it said."""
        process = subprocess.Popen(
            [sys.executable, "-m", "overspill.cli.main", "serve", "--json", *arguments],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            yield process, json.loads(line)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="session")
def command_in() -> Callable[[Path], Command]:
    """A command on a home that outlives one test."""

    def make(home: Path) -> Command:
        (home / "config").mkdir()
        (home / "config" / "config.toml").write_text("isolate = false\n")
        return Command(home)

    return make


@pytest.fixture
def command(home: Path) -> Command:
    """With the engine in the daemon's own process, which starts faster."""
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text("isolate = false\n")
    return Command(home)
