"""SDK and daemon where there are no Unix sockets: over loopback, each proving itself to the other.

As on Windows, as far as another system allows: the daemon is told to do without its sockets.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from overspill import AsyncOverspill
from overspill.errors import ConnectFailed, DaemonRefused, UsageError
from overspill.transport.handshake import Welcome
from overspill.transport.loopback import FILE_NAME, Loopback
from overspill.wire.told import to_json
from overspill_edge.app import Daemon, Ready, ServeOptions
from overspill_edge.tokens import user_tokens

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def serving(settings) -> AsyncIterator[Ready]:
    daemon = Daemon(ServeOptions(settings=settings, replaceable=True, loopback=True))
    ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(daemon.run(ready.set_result))
    await asyncio.wait({ready, running}, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        await running
    try:
        yield ready.result()
    finally:
        daemon.stop()
        await running


@pytest.fixture
def file(settings):
    return settings.places.runtime / FILE_NAME


async def test_an_app_finds_the_daemon_and_is_answered(settings, file):
    async with serving(settings) as ready:
        assert ready.socket is None
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        async with AsyncOverspill("notes", settings=settings, daemon="require") as ai:
            assert ai.uses_daemon
            assert (await ai.chat("hello")).text == "echo: hello"
            said = [piece.text async for piece in ai.stream("hello")]
            assert "".join(said) == "echo: hello"
            assert len((await ai.embed("hello")).embeddings) == 1
        token = json.loads(file.read_text())["token"]
        async with httpx2.AsyncClient(base_url=f"http://{ready.tcp}") as http:
            assert (await http.get("/overspill/v1/status")).status_code == 401
            assert (await http.post("/overspill/v1/local", json={"app": "x"})).status_code == 401
            held = {"Authorization": f"Bearer {token}"}
            events = (await http.get("/overspill/v1/events", headers=held)).json()["events"]
            assert {event["app"] for event in events} == {"notes"}
    assert not file.exists()
    assert user_tokens(settings.places).records() == ()


async def test_a_daemon_that_died_is_none_and_the_next_one_revokes_its_token(settings, file):
    tokens = user_tokens(settings.places)
    async with serving(settings):
        left = file.read_text()
        kept = tokens.records()[0]
    file.write_text(left)  # as a crash leaves it
    file.chmod(0o600)
    with pytest.raises(ConnectFailed):
        await AsyncOverspill("t", settings=settings, daemon="require").__aenter__()
    async with AsyncOverspill("t", settings=settings) as ai:
        assert not ai.uses_daemon
        assert (await ai.chat("hello")).text == "echo: hello"
    async with serving(settings):
        assert kept.id not in {record.id for record in tokens.records()}
        async with AsyncOverspill("t", settings=settings, daemon="require") as ai:
            assert (await ai.chat("hello")).text == "echo: hello"


class Squatter(http.server.BaseHTTPRequestHandler):
    """Has the port of a daemon that died, and says that it is one."""

    seen: list[bytes]

    def do_POST(self):
        self.seen.append(self.rfile.read(int(self.headers["content-length"])))
        welcome = Welcome("127.0.0.1:1", "ticket", "t", "echo", "", proof="0" * 64)
        body = to_json(welcome).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


async def test_whoever_took_a_dead_daemons_port_is_told_no_prompt(settings, file):
    seen: list[bytes] = []
    handler = type("Handler", (Squatter,), {"seen": seen})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings.places.runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        Loopback(f"127.0.0.1:{server.server_port}", "ovs_t", "the-key").write(file)
        with pytest.raises(DaemonRefused, match="not this user's daemon"):
            await AsyncOverspill("t", settings=settings, daemon="require").__aenter__()
        server.shutdown()
    assert len(seen) == 1
    assert b"the-key" not in seen[0]


async def test_a_file_that_others_can_read_is_not_used(settings, file):
    async with serving(settings):
        file.chmod(0o644)
        with pytest.raises(DaemonRefused, match="Other users"):
            await AsyncOverspill("t", settings=settings, daemon="require").__aenter__()


async def test_a_socket_cannot_be_asked_for_where_there_are_none(settings, tmp_path):
    options = ServeOptions(settings=settings, socket_path=tmp_path / "s.sock", loopback=True)
    with pytest.raises(UsageError, match="no Unix sockets"):
        await Daemon(options).run(lambda ready: None)
