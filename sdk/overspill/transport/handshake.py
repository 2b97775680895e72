"""How an app and the daemon of its user meet: over the HTTP socket, before any gRPC.

The kernel says there who connects (uid and program), which gRPC cannot. So the app tells its name
and version on that socket, and gets the path of the gRPC socket with a ticket for it. Both sides
compare protocol numbers, and the one that is too old is named.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overspill import errors
from overspill._version import __version__
from overspill.transport.loopback import FILE_NAME, Loopback, read_loopback
from overspill.wire.told import from_json, to_json

PATH = "/overspill/v1/local"
SOCKET_NAME = "overspill.sock"
MOVED = "MOVED"
"""``BusyError.reason`` of a daemon that handed over to another: greet again."""
PROTOCOL = 1
OLDEST_PROTOCOL = 1
"""The oldest protocol of the other side that this version still speaks."""
_MAX_ANSWER_BYTES = 1 << 16


class PeerGone(errors.ConnectFailed):
    """The other side of a local connection is not there; not an error that it told of another."""


@dataclass(frozen=True, slots=True)
class Side:
    """A side's version and the protocols that it speaks, ``oldest`` to ``protocol``."""

    version: str = __version__
    protocol: int = PROTOCOL
    oldest: int = OLDEST_PROTOCOL


@dataclass(frozen=True, slots=True)
class Hello:
    """What an app says first; ``app`` is its own name for itself, ``nonce`` what a daemon on
    loopback proves itself by."""

    app: str
    side: Side = Side()  # frozen
    nonce: str = ""


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the daemon answers: ``socket`` is its gRPC socket, ``ticket`` what opens it. On loopback
    ``socket`` is an address, and ``proof`` says that it is this user's daemon.

    ``app`` is who the daemon takes the caller for. ``work`` is the digest of the settings that
    decide what answers (see :func:`overspill.daemon.work_digest`), ``model`` its device's model.
    """

    socket: str
    ticket: str
    app: str
    model: str
    work: str
    side: Side = Side()  # frozen
    proof: str = ""

    @property
    def target(self) -> str:
        """For gRPC."""
        on_loopback = self.socket.startswith("127.0.0.1:")
        return self.socket if on_loopback else f"unix:{self.socket}"


def check_versions(sdk: Side, daemon: Side) -> None:
    """Raise ``VersionMismatch``, which names the side to upgrade, unless both understand each
    other."""
    for name, old, new in (("SDK", sdk, daemon), ("daemon", daemon, sdk)):
        if old.protocol < new.oldest:
            raise errors.VersionMismatch(
                f"The SDK is version {sdk.version}, the daemon {daemon.version}: "
                f"the {name} is too old for the other.",
                mend=_UPGRADE[name],
            )


_UPGRADE = {
    "SDK": "Upgrade the SDK: pip install --upgrade overspill",
    "daemon": "Upgrade the daemon and restart it: pip install --upgrade overspill",
}


def greet(path: Path, hello: Hello, *, timeout_s: float) -> Welcome:
    """Ask the daemon at the HTTP socket ``path``, or where there is none at the loopback address
    that a file beside it names; blocks for ``timeout_s`` at most.

    Raises ``PeerGone`` where nobody answers, ``VersionMismatch``, and ``DaemonRefused``
    where the daemon does not accept this app, or is not this user's.
    """
    loopback = None if path.exists() else read_loopback(path.with_name(FILE_NAME))
    if loopback is None:
        _check_owner(path)
        connection: http.client.HTTPConnection = _UnixConnection(path, timeout_s)
    else:
        hello = replace(hello, nonce=secrets.token_urlsafe(16))
        connection = http.client.HTTPConnection(loopback.http, timeout=timeout_s)
    headers = {"Content-Type": "application/json"}
    if loopback is not None:
        headers["Authorization"] = f"Bearer {loopback.token}"
    try:
        connection.request("POST", PATH, to_json(hello).encode(), headers)
        answer = connection.getresponse()
        status, body = answer.status, answer.read(_MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise PeerGone(f"No daemon answers at {path} ({error}).") from error
    finally:
        connection.close()
    if status != 200:
        raise _refusal(status, body)
    try:
        welcome = from_json(Welcome, body.decode("utf-8", "replace"))
    except errors.InvalidRequest as error:
        raise errors.DaemonRefused(
            f"What answers at {path} is no daemon of overspill.", mend="Stop it, or start one."
        ) from error
    if loopback is not None:
        _check_proof(loopback, hello, welcome)
    check_versions(hello.side, welcome.side)
    return welcome


def _check_proof(loopback: Loopback, hello: Hello, welcome: Welcome) -> None:
    if not loopback.is_proof(welcome.proof, hello.nonce, welcome.socket, welcome.ticket):
        raise errors.DaemonRefused(
            f"What answers at {loopback.http} is not this user's daemon.",
            mend="Stop it, and start the daemon again.",
        )


def _check_owner(path: Path) -> None:
    """Nobody else's socket is told a prompt, wherever the runtime folder may be."""
    try:
        owner = path.stat().st_uid
    except OSError as error:
        raise PeerGone(f"No daemon answers at {path} ({error.strerror}).") from error
    if os.name == "posix" and owner not in (os.geteuid(), 0):
        raise errors.DaemonRefused(
            f"{path} belongs to another user.", mend="Remove it, or set another runtime folder."
        )


def _refusal(status: int, body: bytes) -> errors.OverspillError:
    """The daemon's own words; 404 is a daemon from before there was a handshake."""
    if status == 404:
        return errors.VersionMismatch(
            "The daemon is too old for this SDK.", mend=_UPGRADE["daemon"]
        )
    said = _error_object(body)
    message, mend = str(said.get("message", f"status {status}")), str(said.get("mend", ""))
    kind = (
        errors.VersionMismatch if said.get("code") == "version_mismatch" else errors.DaemonRefused
    )
    return kind(message.removesuffix(mend).strip(), mend=mend)


def _error_object(body: bytes) -> Mapping[str, Any]:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket; the Host is one that the daemon allows."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        if not hasattr(socket, "AF_UNIX"):
            raise OSError("this system has no Unix sockets")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(str(self._path))
