"""A hub on loopback: a real HTTP server that serves repositories well, badly, or only so far."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """``files`` by repository and path; the switches say how they are served."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    small: set[str] = field(default_factory=set)
    ranges: bool = True
    etags: bool = True
    lengths: bool = True
    cut_after: list[int] = field(default_factory=list)
    """Each connection of a file takes one: it ends after so many bytes."""
    stop_at: int | None = None
    """Every connection stops sending at this byte of the file, and stays open."""
    statuses: list[int] = field(default_factory=list)
    serve_instead: dict[str, bytes] = field(default_factory=dict)
    redirect_to: str | None = None
    licence: str | None = "apache-2.0"
    commit: str = COMMIT
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    reached: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)

    def listing(self, repo):
        siblings = []
        for path, data in self.files[repo].items():
            entry = {"rfilename": path, "size": len(data)}
            if path in self.small:
                entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            else:
                entry["blobId"] = "0" * 40
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            siblings.append(entry)
        return {"sha": self.commit, "siblings": siblings, "cardData": {"license": self.licence}}

    def asked_ranges(self):
        return [asked for path, asked in self.seen if "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub = self.server.hub
        hub.seen.append((self.path, self.headers.get("Range")))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/[^?]+\?blobs=true", self.path)
        if api:
            self._json(hub, api[1])
            return
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", self.path)
        if not found or found[3] not in hub.files.get(found[1], {}):
            self._end(404)
            return
        if hub.redirect_to is not None:
            self.send_response(302)
            self.send_header("Location", hub.redirect_to)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if hub.statuses:
            self._end(hub.statuses.pop(0))
            return
        self._file(hub, hub.serve_instead.get(found[3], hub.files[found[1]][found[3]]))

    def _json(self, hub, repo):
        if repo not in hub.files:
            self._end(404)
            return
        body = json.dumps(hub.listing(repo)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, hub, data):
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and hub.ranges and self.headers.get("If-Range") in (None, etag):
            start = int(asked[1])
        if start >= len(data) and start:
            self._end(416)
            return
        self.send_response(206 if start else 200)
        if hub.lengths:
            self.send_header("Content-Length", str(len(data) - start))
        else:
            self.send_header("Connection", "close")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if hub.etags:
            self.send_header("ETag", etag)
        self.end_headers()
        end = len(data)
        if hub.cut_after:
            end = min(end, start + hub.cut_after.pop(0))
        if hub.stop_at is not None:
            end = min(end, max(start, hub.stop_at))
        self.wfile.write(data[start:end])
        self.wfile.flush()
        if end < len(data):
            hub.reached.set()
            if hub.stop_at is not None:
                hub.let_go.wait(60)
            self.close_connection = True
            self.connection.shutdown(2)

    def _end(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving():
    """The hub while it serves, on a port of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.hub = Hub(url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.hub.let_go.set()
        server.shutdown()
        server.server_close()
        thread.join()
