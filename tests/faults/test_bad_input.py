"""Everything that a node may be sent or may lose, each while somebody else's answer runs: a typed
status that tells nothing of the node or of others, bounded memory, and that answer unharmed."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

import psutil
from faults.history import record
from faults.nodes import FAR_UNIX
from faults.rows_road import ask
from faults.tls import write_certificate

from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.errors import (
    BusyError,
    ContextOverflow,
    DeviceRejected,
    DoesNotFit,
    InvalidRequest,
    KeyUnknown,
    ModelNotFound,
    OverspillError,
    StreamCorrupt,
    TransportError,
)
from overspill.identity.keys import SoftwareKey
from overspill.remote import RemoteEngine
from overspill.sealing.hpke import seal_secret
from overspill.transport.base import SealedHead
from overspill.transport.grpc import GrpcOptions, GrpcTransport
from overspill.trust.policy import parse_policy
from overspill.trust.template import dev_policy
from overspill.types.chat import Message, Request
from overspill_cloud import server
from overspill_cloud.app import NodeOptions, Serving, parse_model, serve
from overspill_cloud.limits import AdmissionLimits
from overspill_cloud.store import Store

pytestmark = pytest.mark.anyio
CANARY = "canary-2c41"
MOST_GROWTH_BYTES = 64 << 20


@dataclass
class Place:
    """A node in this process, on a real socket, and clients for it."""

    node: Serving
    options: NodeOptions
    log: io.StringIO
    ca_pem: bytes | None = None

    def road(self) -> GrpcTransport:
        if self.ca_pem is None:
            return GrpcTransport(self.node.listen)
        return GrpcTransport(self.node.listen, GrpcOptions(self.ca_pem, server_name="localhost"))

    def client(self, key: SoftwareKey) -> RemoteEngine:
        models = {name: model.sha256 for name, model in self.node.models.items()}
        policy = parse_policy(dev_policy(bytes.fromhex(self.node.dev_root or ""), models))
        return RemoteEngine(self.road(), policy, key)

    def store(self) -> Store:
        return Store(self.options.state, self.options.database)

    async def enrolled(self) -> tuple[RemoteEngine, SoftwareKey]:
        key = SoftwareKey.generate(FAR_UNIX)
        store = self.store()
        code = store.new_code(FAR_UNIX)
        store.close()
        engine = self.client(key)
        await engine.enroll(code)
        return engine, key


@asynccontextmanager
async def place(
    folder: Path, *, database: str | None = None, tls: bool = False, quota: int | None = None
) -> AsyncGenerator[Place]:
    certificate, key_file = folder / "tls.crt", folder / "tls.key"
    if tls:
        write_certificate(certificate, key_file)
    options = NodeOptions(
        (parse_model("echo=echo"),),
        "localhost:0" if tls else "127.0.0.1:0",
        folder / "state",
        tls_certificate=certificate if tls else None,
        tls_key=key_file if tls else None,
        database=database,
        engine=EngineOptions(
            token_delay_s=0.005, max_sequences=8, scheduler=SchedulerOptions(speculation="off")
        ),
        admission=AdmissionLimits(quota_tokens=quota),
        drain_timeout_s=0.0,
    )
    log = io.StringIO()
    async with serve(options, log_to=log) as node:
        yield Place(node, options, log, certificate.read_bytes() if tls else None)


@asynccontextmanager
async def witnessed(here: Place) -> AsyncGenerator[None]:
    """Somebody else's answers run from before to after, and each comes whole."""
    engine, _ = await here.enrolled()
    ended = asyncio.Event()

    async def watch() -> None:
        turn = 0
        while turn == 0 or not ended.is_set():
            history = await record(engine, ask(60, turn))
            assert history.is_complete, history.error
            turn += 1

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        ended.set()
        await watching
        await engine.aclose()


# What is sent ---------------------------------------------------------------------------------


async def unknown_device(here: Place) -> None:
    engine = here.client(SoftwareKey.generate(FAR_UNIX))
    await _asked(engine, CANARY)


async def revoked_device(here: Place) -> None:
    engine, key = await here.enrolled()
    store = here.store()
    store.revoke(key.thumbprint, 1)
    store.close()
    await _asked(engine, CANARY)


async def model_not_served(here: Place) -> None:
    engine, _ = await here.enrolled()
    await _asked(engine, CANARY, model=f"no-{CANARY}")


async def prompt_too_long(here: Place) -> None:
    engine, _ = await here.enrolled()
    await _asked(engine, CANARY * 20_000)


async def request_too_large(here: Place) -> None:
    engine, _ = await here.enrolled()
    await _asked(engine, "x" * (17 << 20))


async def quota_spent(here: Place) -> None:
    engine, key = await here.enrolled()
    store = here.store()
    store.set_quota(key.thumbprint, 10)
    store.close()
    await _asked(engine, CANARY, max_tokens=500)


async def frame_too_large(here: Place) -> None:
    await _thrown(here, os.urandom(3 << 20))


async def frames_that_do_not_open(here: Place) -> None:
    await _thrown(here, os.urandom(500), os.urandom(500))


async def a_key_that_nobody_has(here: Place) -> None:
    road = here.road()
    try:
        await _drained(road.chat(SealedHead(os.urandom(32), os.urandom(1216)), _frames(b"x")))
    finally:
        await road.aclose()


async def a_stream_that_nobody_began(here: Place) -> None:
    road = here.road()
    try:
        await _drained(road.resume(os.urandom(32), os.urandom(32), 0))
    finally:
        await road.aclose()


async def _asked(engine: RemoteEngine, text: str, **options: object) -> None:
    request = replace(Request((Message("user", text),)), **options)  # type: ignore[arg-type]
    try:
        [chunk async for chunk in engine.generate(request)]
    finally:
        await engine.aclose()


async def _thrown(here: Place, *frames: bytes) -> None:
    """Frames behind a head that opens."""
    engine, _ = await here.enrolled()
    result = await engine.attest()
    await engine.aclose()
    road = here.road()
    head = SealedHead(result.nkc_sha256, seal_secret(result).sealed_key)
    try:
        answers = await _drained(road.chat(head, _frames(*frames)))
    finally:
        await road.aclose()
    assert len(answers) == 2  # the nonce, and a sealed refusal that only who has the key can open
    raise StreamCorrupt("sealed")


async def _frames(*frames: bytes) -> AsyncGenerator[bytes]:
    for frame in frames:
        yield frame


async def _drained(answers: AsyncGenerator[bytes]) -> list[bytes]:
    return [answer async for answer in answers]


CASES = [
    (unknown_device, DeviceRejected, "not_enrolled"),
    (revoked_device, DeviceRejected, "revoked"),
    (model_not_served, ModelNotFound, None),
    (prompt_too_long, ContextOverflow, None),
    (request_too_large, DoesNotFit, None),
    (quota_spent, BusyError, "QUOTA"),
    (frame_too_large, (BusyError, TransportError), None),
    (frames_that_do_not_open, StreamCorrupt, None),
    (a_key_that_nobody_has, KeyUnknown, None),
    (a_stream_that_nobody_began, InvalidRequest, None),
]


async def test_each_gets_its_typed_status_and_harms_nobody(tmp_path):
    async with place(tmp_path) as here, witnessed(here):
        for send, kind, reason in CASES:
            with pytest.raises(kind) as caught:
                await send(here)
            if reason is not None:
                assert caught.value.reason == reason, send.__name__
            _tells_nothing(caught.value, here)
    assert CANARY not in here.log.getvalue()
    assert "InternalError" not in here.log.getvalue()


def _tells_nothing(error: OverspillError, here: Place) -> None:
    """No path, no database, no trace of other devices; what was asked for may be named."""
    told = f"{error} {error.mend}"
    for word in (str(here.options.state), "sqlite", "postgres", "Traceback", "/site-packages/"):
        assert word not in told
    assert len(told) < 500


async def test_many_of_each_leave_no_memory_behind(tmp_path):
    cheap = [unknown_device, model_not_served, frames_that_do_not_open, a_key_that_nobody_has]
    async with place(tmp_path) as here, witnessed(here):
        for send in cheap:
            with suppress(OverspillError):
                await send(here)
        before = _resident()
        for _ in range(8):
            for send in cheap:
                with suppress(OverspillError):
                    await send(here)
        assert _resident() - before < MOST_GROWTH_BYTES
        assert here.node.node.active <= 1


def _resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


# What is opened -------------------------------------------------------------------------------


async def test_a_flood_of_handshakes_keeps_nobody_out_and_is_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_MS", 500)
    async with place(tmp_path, tls=True) as here:
        port = int(here.node.listen.rpartition(":")[2])
        before = _resident()
        async with witnessed(here):
            silent = [socket.create_connection(("localhost", port)) for _ in range(300)]
            noisy = [socket.create_connection(("localhost", port)) for _ in range(30)]
            for one in noisy:
                one.sendall(os.urandom(200))
            context = ssl.create_default_context()
            half = [_half_handshake(context, port) for _ in range(30)]
            late, _ = await here.enrolled()
            assert (await record(late, ask(10, 1))).is_complete
            await late.aclose()
            flood = silent + noisy + half
            await asyncio.gather(*(asyncio.to_thread(_until_closed, one) for one in flood))
        assert _resident() - before < MOST_GROWTH_BYTES
    assert "InternalError" not in here.log.getvalue()


def _half_handshake(context: ssl.SSLContext, port: int) -> socket.socket:
    """The first flight of a TLS handshake, and nothing after it."""
    outgoing = ssl.MemoryBIO()
    talk = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        talk.do_handshake()
    connection = socket.create_connection(("localhost", port))
    connection.sendall(outgoing.read())
    return connection


def _until_closed(connection: socket.socket) -> None:
    """Raises ``TimeoutError`` where the node holds it on."""
    connection.settimeout(30)
    with connection, suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass


# What is lost ---------------------------------------------------------------------------------


async def test_a_database_that_is_gone_refuses_who_comes_and_stops_nobody(tmp_path, postgres):
    from contextlib import closing

    from overspill_cloud.store import open_backend
    from overspill_cloud.store.schema import upgrade

    url = postgres.new_database()
    with closing(open_backend(tmp_path, url)) as backend:
        upgrade(backend)
    async with place(tmp_path, database=url) as here:
        engine, _ = await here.enrolled()
        beside = asyncio.create_task(record(engine, ask(300, 1)))
        while not here.node.node.active:  # noqa: ASYNC110 - begun is what counts
            await asyncio.sleep(0.005)
        await asyncio.to_thread(postgres.stop)
        try:
            refused = await record(engine, ask(5, 2))
            assert isinstance(refused.error, BusyError)
            assert refused.error.reason == "STATE"
            _tells_nothing(refused.error, here)
            assert (await beside).is_complete
        finally:
            await asyncio.to_thread(postgres.start)
        while not (await record(engine, ask(5, 3))).is_complete:  # noqa: ASYNC110 - a server starts
            await asyncio.sleep(0.05)
        await engine.aclose()
    with closing(Store(tmp_path, url)) as store:
        assert len(store.usage()) == 2
