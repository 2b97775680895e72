"""The tlog-witness protocol over HTTP: a small server, and the client that a log uses.

The server is for loopback or behind a web server that speaks TLS: who may submit does not matter,
as only what the log signed is looked at.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from overspill._version import __version__
from overspill.errors import ConfigurationError, ConnectFailed, OverspillError, UsageError
from overspill.releasing.witness_store import WitnessStore
from overspill.trust.log.witness import ADD_CHECKPOINT, MAX_REQUEST_BYTES, Answer

_TIMEOUT_S: Final = 10.0
_MAX_ANSWER_BYTES: Final = 64 << 10


@contextmanager
def serving_witness(store: WitnessStore, listen: str) -> Iterator[str]:
    """Serves within the block; yields the URL prefix. ``listen`` is ``HOST:PORT``, port 0 a free
    one. Raises ``ConfigurationError`` for an address that cannot be had."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"'{listen}' is no address.", mend="Give HOST:PORT.")
    try:
        server = _Server((host.strip("[]"), int(port)), _handler(store))
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"Cannot listen on {listen}: {error}.", mend="Choose another address."
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def submit(prefix: str, body: bytes) -> Answer:
    """POSTs a request to a witness under its URL prefix.

    Raises ``UsageError`` for a prefix that is no HTTP URL, ``ConnectFailed`` when nobody answers.
    """
    if urllib.parse.urlsplit(prefix).scheme not in ("http", "https"):
        raise UsageError(f"'{prefix}' is no witness's URL.", mend="Give http(s)://HOST/PREFIX.")
    request = urllib.request.Request(  # noqa: S310  # the scheme was checked
        prefix.rstrip("/") + ADD_CHECKPOINT,
        data=body,
        headers={"Content-Type": "text/plain; charset=utf-8"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            return Answer(answer.status, answer.read(_MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        kind = error.headers.get_content_type()
        return Answer(error.code, error.read(_MAX_ANSWER_BYTES), kind)
    except OSError as error:
        raise ConnectFailed(
            f"The witness at {prefix} does not answer: {error}.", mend="Try again later."
        ) from error


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Requests of one log follow each other; a flood is turned away by the kernel.
    request_queue_size = 16


def _handler(store: WitnessStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = f"overspill-witness/{__version__}"
        sys_version = ""
        timeout = _TIMEOUT_S

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path.partition("?")[0] != ADD_CHECKPOINT:
                self._send(Answer(404, b"there is only /add-checkpoint here\n"), close=True)
            elif not length.isdigit() or int(length) > MAX_REQUEST_BYTES:
                self._send(Answer(400, b"a Content-Length is needed, and not too large\n"), True)
            else:
                self._answer(self.rfile.read(int(length)))

        def _answer(self, body: bytes) -> None:
            try:
                answer = store.add_checkpoint(body)
            except OverspillError:
                # Its operator reads it on the witness; a stranger is told no path of it.
                answer = Answer(500, b"the witness cannot use its state\n")
            self._send(answer)

        def _send(self, answer: Answer, close: bool = False) -> None:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            if close:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            """No log of who asked."""

    return Handler
