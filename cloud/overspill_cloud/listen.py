"""Whether an address can be listened on, found out before anything is loaded."""

from __future__ import annotations

import errno
import os
import socket
import stat

from overspill.errors import BusyError, ConfigurationError, UsageError


def check_address(address: str) -> None:
    """Whether it is ``HOST:PORT`` or ``unix:/path`` at all. Raises ``UsageError``."""
    if not address.startswith("unix:"):
        _host_and_port(address)


def check_listen(address: str) -> None:
    """Bind ``HOST:PORT`` or ``unix:/path`` for a moment; a stale socket file is removed.

    Raises ``UsageError`` for what is no address, ``BusyError`` for one in use and
    ``ConfigurationError`` for one that cannot be had. gRPC's own check comes late, and tells the
    reason to the log only.
    """
    try:
        if address.startswith("unix:"):
            _check_unix(address.removeprefix("unix:"))
        else:
            _check_tcp(*_host_and_port(address))
    except OSError as error:
        kind = BusyError if error.errno == errno.EADDRINUSE else ConfigurationError
        raise kind(
            f"Cannot listen on {address}: {(error.strerror or str(error)).lower()}.",
            mend="Stop the other program, or give another --listen (port 0 takes a free one).",
        ) from error


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(
            f"'{address}' is no address.", mend="Give --listen HOST:PORT or unix:/path."
        )
    return host.strip("[]"), int(port)


def _check_tcp(host: str, port: int) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigurationError(
            f"'{host}' is no address of this machine.", mend="Give --listen HOST:PORT."
        ) from error
    for family, kind, protocol, _, where in found:
        with socket.socket(family, kind, protocol) as probe:
            # A port whose last connections still linger is free; one that is listened on is not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)


def _check_unix(path: str) -> None:
    if os.path.lexists(path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(path) == 0 or not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise OSError(errno.EADDRINUSE, "in use")
        os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.bind(path)
    os.unlink(path)
