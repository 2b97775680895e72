"""Upstreams on this machine: a small server of our own that speaks as vLLM, SGLang or neither, and
the real llama-server where it is built."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from overspill.bench.peers import PeerPaths, find_peers
from overspill.config import default_places
from overspill.engines.registry import BROOK
from overspill_cloud.upstream.address import UpstreamAddress, parse_upstream
from overspill_cloud.upstream.engine import UpstreamEngine


@dataclass
class Upstream:
    """What the small server says; ``closed`` is set when a client leaves before the end."""

    owner: str = "vllm"
    context: int = 64
    health: int = 200
    status: int = 200
    counts: int = 8
    words: int = 3
    hangs: bool = False
    answers_as: str = "big"
    received: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    address: UpstreamAddress = field(default_factory=lambda: UpstreamAddress("", ""))

    @property
    def chats(self) -> list[dict[str, Any]]:
        return [body for path, body in self.received if path == "/v1/chat/completions"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Tcp | _Unix

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "client"

    def do_GET(self) -> None:
        said = self.server.upstream
        if self.path == "/v1/models":
            entry = {"id": "big", "owned_by": said.owner}
            entry |= {"max_model_len": said.context} if said.context else {}
            self._json(200, {"data": [entry]})
        else:
            self._json(said.health, {})

    def do_POST(self) -> None:
        said = self.server.upstream
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said.received.append((self.path, body))
        if self.path == "/tokenize":
            return self._json(200, {"count": said.counts, "max_model_len": said.context})
        if said.status != 200:
            return self._json(said.status, {"error": "the prompt was: " + str(body["messages"])})
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self._answer(said)
        except OSError:
            said.closed.set()
        self.close_connection = True

    def _answer(self, said: Upstream) -> None:
        for n in range(said.words):
            self._event(said, {"content": f"w{n} "}, None)
        while said.hangs:
            self.wfile.write(b": still here\n\n")
            time.sleep(0.01)
        self._event(said, {}, "stop")
        usage = {"prompt_tokens": said.counts, "completion_tokens": said.words}
        data = json.dumps({"model": said.answers_as, "choices": [], "usage": usage})
        self.wfile.write(f"data: {data}\n\ndata: [DONE]\n\n".encode())

    def _event(self, said: Upstream, delta: dict[str, Any], reason: str | None) -> None:
        choices = [{"delta": delta, "finish_reason": reason}]
        data = json.dumps({"model": said.answers_as, "choices": choices})
        self.wfile.write(f"data: {data}\n\n".encode())

    def _json(self, status: int, said: dict[str, Any]) -> None:
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Tcp(socketserver.ThreadingTCPServer):
    daemon_threads = True
    upstream: Upstream


class _Unix(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    upstream: Upstream


@pytest.fixture(params=["tcp", "unix"])
def road(request: pytest.FixtureRequest) -> str:
    """Both ways in which an upstream may be reached."""
    return str(request.param)


def _serving(server: _Tcp | _Unix, upstream: Upstream) -> Iterator[Upstream]:
    server.upstream = upstream
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield upstream
    finally:
        upstream.hangs = False
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """The small server on loopback."""
    server = _Tcp(("127.0.0.1", 0), _Handler)
    address = parse_upstream(f"upstream:http://127.0.0.1:{server.server_address[1]}#big")
    yield from _serving(server, Upstream(address=address))


@pytest.fixture
def upstream_on(road: str, tmp_path: Path) -> Iterator[Upstream]:
    """The small server on each road."""
    if road == "tcp":
        server: _Tcp | _Unix = _Tcp(("127.0.0.1", 0), _Handler)
        where = f"http://127.0.0.1:{server.server_address[1]}"
    else:
        server = _Unix(str(tmp_path / "u.sock"), _Handler)
        where = f"unix:{tmp_path}/u.sock"
    yield from _serving(server, Upstream(address=parse_upstream(f"upstream:{where}#big")))


@pytest.fixture(scope="session")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpstreamAddress]:
    """The real one, with the model of the wheel, on a Unix socket."""
    program = find_peers(PeerPaths(), default_places().cache).llama_server
    if program is None:
        pytest.skip("llama-server is not built: run scripts/build_peers.py")
    folder = tmp_path_factory.mktemp("llama", numbered=True)
    path = Path("/tmp") / f"overspill-{os.getpid()}.sock"  # short: a socket's path is bounded
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [
            *(program, "-m", BROOK, "--alias", "brook", "--host", path, "-c", "1024", "-np", "2"),
            *("-t", "1", "--no-webui", "--jinja", "--no-warmup"),
        ],
        stdout=log,
        stderr=log,
    )
    try:
        _until_healthy(process, path, folder / "log")
        yield parse_upstream(f"upstream:unix:{path}#brook")
    finally:
        process.kill()
        process.wait()
        log.close()
        path.unlink(missing_ok=True)


def _until_healthy(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-2000:]
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                probe.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if b" 200 " in probe.makefile("rb").readline():
                    return
        time.sleep(0.05)
    raise AssertionError(log.read_text()[-2000:])


@pytest.fixture
def open_upstream() -> Any:
    """``open_upstream(address)``: an engine that is not started yet."""
    return lambda address, **options: UpstreamEngine(address, name="served", **options)
