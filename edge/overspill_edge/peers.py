"""Who is at the other end of a connection, as the kernel says, and not as the peer does.

A Unix socket's peer is a process of a user: its uid must be ours. The check happens when the
connection is made, before a byte of it is parsed. ``SO_PEERCRED`` is Linux (unix(7)),
``LOCAL_PEERCRED`` and ``LOCAL_PEERPID`` are macOS and the BSDs (unix(4)).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import psutil
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)

SCOPE_KEY = "overspill.peer"

_UCRED = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEERPID = 0, 0x001, 0x002
_XUCRED = struct.Struct("=II")  # struct xucred begins: cr_version, cr_uid
_XUCRED_BYTES = 76
_COMM_CHARACTERS = 15
MAX_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Peer:
    """One connection's other end. ``uid`` and ``pid`` are None where the kernel does not say."""

    transport: Literal["unix", "tcp"]
    uid: int | None = None
    pid: int | None = None

    @cached_property
    def program(self) -> str:
        """The peer's program name for the log and for ``app``; ``unknown`` once it has gone. Looked
        at once for each connection: later the id may be another program's."""
        if self.pid is None:
            return "unknown"
        if sys.platform == "linux":
            return _linux_program(self.pid)
        try:
            return str(psutil.Process(self.pid).name())
        except psutil.Error:
            return "unknown"


def _linux_program(pid: int) -> str:
    """Its name as proc_pid_comm(5) has it, by one read: psutil reads and parses more. A name that
    fills the field may be a longer one's beginning."""
    try:
        with open(f"/proc/{pid}/comm", "rb", buffering=0) as file:
            name = file.read(64).decode("utf-8", "replace").rstrip("\n")
    except OSError:
        return "unknown"
    if len(name) < _COMM_CHARACTERS:
        return name or "unknown"
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return name


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel. Raises ``OSError`` where a Unix socket's credentials cannot be had."""
    if connection.family != getattr(socket, "AF_UNIX", None):
        return Peer("tcp")
    if sys.platform == "linux":
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _gid = _UCRED.unpack(raw)
        return Peer("unix", uid=uid, pid=pid or None)
    raw = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES)
    _version, uid = _XUCRED.unpack_from(raw)
    pid = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID)
    return Peer("unix", uid=uid, pid=pid or None)


def is_own_user(peer: Peer) -> bool:
    """True for TCP (a token decides there) and for a Unix peer with this process's user id."""
    return peer.transport == "tcp" or peer.uid == os.geteuid()


class _Gathering:
    """A transport whose writes of one turn of the event loop go out as one, for each write of its
    own wakes the client. An answer's head goes with what follows it, and that at once."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Held until the turn ends, or until a head has its body."""
        self._held.append(data)
        if len(self._held) == 1:
            asyncio.get_running_loop().call_soon(self._flush)
        elif self._held[0].startswith(b"HTTP/"):
            self._flush()

    def close(self) -> None:
        """After what is held."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held and not self._transport.is_closing():
            self._transport.write(b"".join(held))


class PeerProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol over Node.js's parser that asks for the peer first and hands it
    to the app.

    uvicorn keeps the socket out of the ASGI scope, so the app of each connection is wrapped.
    """

    _untold_bytes = 0
    _told = _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn declares it
        """Drop another user's connection unread; otherwise put the peer into every scope."""
        try:
            peer = peer_of(transport.get_extra_info("socket"))
        except OSError:
            peer = None
        if peer is None or not is_own_user(peer):
            logger.warning("refused a connection of another user (uid %s)", peer and peer.uid)
            self.transport = transport
            transport.abort()
            return
        super().connection_made(cast(asyncio.Transport, _Gathering(transport)))
        self.app = _with_peer(self.app, peer)

    def data_received(self, data: bytes) -> None:
        """Parse; a head or a trailer without an end is refused, for the parser keeps all of it."""
        if self.parser is None or self.transport.is_closing():  # refused already
            return
        self._unset_keepalive_if_required()
        self._told = False
        try:
            self._feed(data)
        except HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        self._untold_bytes = 0 if self._told else self._untold_bytes + len(data)
        if self._untold_bytes > MAX_HEAD_BYTES:
            self.send_400_response("The head of this request is too large.")

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as wish:
            rest = data[wish.args[0] :]
            self._feed(self._head_without_wish() + rest)

    def _head_without_wish(self) -> bytes:
        """A client may wish for HTTP/2 (Java's do, with each first request), and a server may pass
        over that (RFC 9110, 7.8). This parser would pass over the body too: another begins anew."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise HttpParserError("no proxy")
        lines = [method + b" " + self.url + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        return b"\r\n".join((*lines, b"", b""))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A trailer is not a header (RFC 9110, 6.5.1), and nobody here wants one."""
        if not self._in_body:
            super().on_header(name, value)

    def on_message_begin(self) -> None:
        """The next request."""
        self._in_body = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if not self.parser.should_upgrade():
            self._told = self._in_body = True
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._told = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        if not self.parser.should_upgrade():
            self._told = True
            super().on_message_complete()


def _with_peer(app: Any, peer: Peer) -> ASGIApp:
    async def app_of_this_connection(scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY] = peer
        await app(scope, receive, send)

    return app_of_this_connection
