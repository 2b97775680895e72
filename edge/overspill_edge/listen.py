"""The sockets that the daemon listens on, bound before uvicorn sees them.

uvicorn given a *path* makes the socket 0666; here it is 0600 from its first moment, in a folder
of 0700. One lock file per socket says whose it is: whoever holds the lock may take away a socket
file that a crash left behind, and nobody else.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from overspill.errors import BusyError, ConfigurationError, UsageError

SOCKET_NAME = "overspill.sock"
MAX_SOCKET_PATH_BYTES = 103
"""``sun_path`` holds 104 bytes on macOS and 108 on Linux, with a closing zero."""
BACKLOG = 256
FIRST_PASSED: Final = 3
"""The first descriptor that a service manager passes: ``SD_LISTEN_FDS_START``."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A loopback address to bind. ``port`` 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Listeners:
    """Bound sockets, and their addresses as a client would write them."""

    sockets: tuple[socket.socket, ...]
    socket_path: Path | None
    tcp: TcpAddress | None


def parse_tcp(text: str) -> TcpAddress:
    """``HOST:PORT`` with HOST on loopback, or ``UsageError``.

    Anything wider would send prompts in the clear: it needs a token and TLS, and this daemon
    has no TLS, so it refuses to start rather than to listen openly.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--tcp {text} is not HOST:PORT.", mend="Say for example 127.0.0.1:0.")
    address = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise UsageError(
            f"--tcp {text} is wider than this machine: that needs a token and TLS.",
            mend="Use 127.0.0.1 or [::1], and a proxy with TLS in front where others must come in.",
        )
    return TcpAddress(address, int(port))


def passed_socket(environ: Mapping[str, str]) -> socket.socket | None:
    """The Unix socket that a service manager passed to this process (sd_listen_fds(3)), or None.

    Raises ``ConfigurationError`` for anything but one listening Unix stream socket, which only
    its owner can open: what came by TCP would be taken for a peer without a token.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):  # a parent's, or nobody's
        return None
    if environ.get("LISTEN_FDS") != "1":
        raise _cannot_adopt(f"{environ.get('LISTEN_FDS', 'no')} sockets were passed, not one")
    os.set_inheritable(FIRST_PASSED, False)
    try:
        passed = socket.socket(fileno=FIRST_PASSED)
        listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise _cannot_adopt(f"descriptor {FIRST_PASSED}: {error.strerror}") from None
    if passed.family != socket.AF_UNIX or passed.type != socket.SOCK_STREAM or not listens:
        raise _cannot_adopt("what was passed is no listening Unix stream socket")
    path = Path(os.fsdecode(passed.getsockname()))
    if not path.is_socket() or stat.S_IMODE(path.lstat().st_mode) & 0o077:
        raise _cannot_adopt(f"others may open {path}, or it is gone")
    passed.setblocking(False)
    return passed


def _cannot_adopt(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The service manager's socket cannot be used: {why}.",
        mend="Install the units again: overspill service install",
    )


@contextmanager
def listening(
    socket_path: Path | None, tcp: TcpAddress | None, passed: socket.socket | None = None
) -> Iterator[Listeners]:
    """Bind both, hand them out, and take the socket file away at the end.

    ``passed`` listens at ``socket_path`` already; its file is the service manager's and stays.
    Raises ``BusyError`` where another daemon has the socket or another program the port, and
    ``ConfigurationError`` where the folder is not safe to put a socket in.
    """
    if socket_path is None:
        with _bound_tcp(tcp) as tcp_socket:
            yield _listeners(None, None, tcp_socket)
        return
    _check_folder(socket_path)
    unix_socket = _bound_unix(socket_path) if passed is None else passed
    with _sole_owner(socket_path), unix_socket as unix, _bound_tcp(tcp) as tcp_socket:
        yield _listeners(unix, socket_path, tcp_socket)


def _listeners(
    unix: socket.socket | None, path: Path | None, tcp: socket.socket | None
) -> Listeners:
    address = None if tcp is None else TcpAddress(*tcp.getsockname()[:2])
    return Listeners(tuple(s for s in (unix, tcp) if s is not None), path, address)


def make_private_folder(folder: Path) -> None:
    """Create ``folder`` as 0700, or bring one that is ours to it.

    Raises ``ConfigurationError`` where it belongs to somebody else: in a shared place such as
    /tmp another user may have made it first.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or not _is_ours(found):
            raise ConfigurationError(
                f"{folder} is not a folder of this user.", mend="Remove it, or name another place."
            )
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be made private: {error.strerror}.", mend="Name another place."
        ) from None


def _is_ours(found: os.stat_result) -> bool:
    """Windows has no user ids; its profile folders are private by their access lists."""
    return os.name != "posix" or found.st_uid == os.geteuid()


def _check_folder(path: Path) -> None:
    """The folder of a socket that a user named: made 0700 where absent, never changed else.

    Its owner could replace the socket, and so could all who may write there, unless it is sticky.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigurationError(
            f"The socket path is {len(os.fsencode(path))} bytes long; "
            f"the system takes {MAX_SOCKET_PATH_BYTES}.",
            mend="Give a shorter one with --socket.",
        )
    folder = path.parent
    if not folder.exists():
        make_private_folder(folder)
    found = folder.stat()
    writable_by_others = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    if not (_is_ours(found) or found.st_uid == 0) or writable_by_others:
        raise ConfigurationError(
            f"Other users could replace a socket in {folder}.",
            mend=f"Run: chmod 700 {folder}, or name another place with --socket.",
        )


@contextmanager
def _sole_owner(path: Path) -> Iterator[None]:
    """Hold the lock beside the socket; a second daemon is told so at once."""
    lock = FileLock(f"{path}.lock", timeout=0, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"A daemon already serves {path}.",
            mend="Use it, stop it, or give another path with --socket.",
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{path}.lock cannot be made: {error.strerror}.", mend="Name another place."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _bound_unix(path: Path) -> Iterator[socket.socket]:
    _reclaim(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        # The umask is the process's; nothing else creates files while the daemon starts.
        previous = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(previous)
        path.chmod(0o600)
        identity = _identity(path)
        try:
            listener.listen(BACKLOG)
            listener.setblocking(False)
            yield listener
        finally:
            if _identity(path) == identity:
                with suppress(FileNotFoundError):
                    path.unlink()


def _reclaim(path: Path) -> None:
    """Take away a socket file that a crash left; the lock is held, so no daemon of ours has it."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigurationError(
            f"{path} is there and is not a socket.", mend="Move it, or give another path."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise BusyError(
                f"Another program listens on {path}.",
                mend="Stop it, or give another path with --socket.",
            )
    path.unlink()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _bound_tcp(address: TcpAddress | None) -> Iterator[socket.socket | None]:
    if address is None:
        yield None
        return
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        if os.name == "posix":
            # Reuse of TIME_WAIT only; on Windows the option would let others take the port over.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise _cannot_bind(address, error) from None
        listener.setblocking(False)
        yield listener


def _cannot_bind(address: TcpAddress, error: OSError) -> UsageError | BusyError:
    if error.errno == errno.EADDRINUSE:
        return BusyError(
            f"Port {address.port} on {address.host} is in use.",
            mend="Stop what uses it, or take a free one with port 0.",
        )
    return UsageError(f"{address} cannot be bound: {error.strerror}.", mend="Use another address.")
