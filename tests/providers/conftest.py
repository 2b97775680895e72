"""A provider on loopback: a real HTTP server that speaks OpenAI's protocol, well or badly."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Provider:
    """What it answers with, and all that it was sent. ``cut``: the stream just ends."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    events: list[Any] = field(default_factory=list)
    cut: bool = False
    connections: int = 0
    received: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)

    def say(self, *texts: str, reason: str = "stop") -> None:
        """Answer with these pieces of text, and usage."""
        self.events = [self.event({"content": text}) for text in texts]
        self.events.append(self.event({}, reason))
        usage = {"prompt_tokens": 7, "completion_tokens": len(texts)}
        self.events.append({"model": "big-1", "choices": [], "usage": usage})

    def event(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        """One event of a stream."""
        return {"model": "big-1", "choices": [{"delta": delta, "finish_reason": reason}]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def setup(self) -> None:
        self.server.provider.connections += 1
        super().setup()

    def do_POST(self) -> None:
        provider = self.server.provider
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        provider.received.append((self.path, dict(self.headers), body))
        self.send_response(provider.status)
        for name, value in provider.headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if provider.status == 200:
            for event in provider.events:
                data = event if isinstance(event, str) else json.dumps(event)
                self.wfile.write(f"data: {data}\n\n".encode())
            if not provider.cut:
                self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True


class _Server(ThreadingHTTPServer):
    provider: Provider


@pytest.fixture
def provider() -> Iterator[Provider]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.provider = Provider(f"http://127.0.0.1:{server.server_port}/v1")
    server.provider.say("Hel", "lo.")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
