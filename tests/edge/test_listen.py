"""Sockets: whose they are, what is taken over and what is refused, in one line."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys

import pytest

from overspill.errors import BusyError, ConfigurationError, UsageError
from overspill_edge.listen import TcpAddress, listening, make_private_folder, parse_tcp

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")


def test_a_socket_is_private_from_its_first_moment(home):
    path = home / "run" / "o.sock"
    previous = os.umask(0)
    try:
        with listening(path, None) as listeners:
            assert listeners.socket_path == path
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(previous)
    assert not path.exists()


def test_a_second_daemon_is_refused_and_the_first_keeps_its_socket(home):
    path = home / "o.sock"
    with listening(path, None):
        with pytest.raises(BusyError, match="already serves"), listening(path, None):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    with listening(path, None):
        assert path.exists()


def test_a_socket_that_a_crash_left_is_taken_over(home):
    path = home / "o.sock"
    script = (
        "import os, pathlib, sys\n"
        "from overspill_edge.listen import listening\n"
        "manager = listening(pathlib.Path(sys.argv[1]), None)\n"
        "manager.__enter__()\n"
        "os._exit(9)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(path)], timeout=60)
    assert died.returncode == 9
    assert path.is_socket()
    with listening(path, None), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_on_which_a_stranger_listens_is_left_alone(home):
    path = home / "o.sock"
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        with pytest.raises(BusyError, match="Another program"), listening(path, None):
            pass
        assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_socket_is_never_removed(home, kind):
    path = home / "o.sock"
    path.write_text("mine") if kind == "file" else path.mkdir()
    with pytest.raises(ConfigurationError, match="not a socket"), listening(path, None):
        pass
    assert path.exists()


def test_a_folder_that_others_may_write_is_refused(home):
    folder = home / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ConfigurationError, match="chmod 700"), listening(folder / "o.sock", None):
        pass
    folder.chmod(0o1777)  # as /tmp: others can't replace what is not theirs
    with listening(folder / "o.sock", None):
        pass


def test_the_runtime_folder_is_brought_to_0700_and_a_link_is_refused(home):
    folder = home / "run"
    folder.mkdir()
    folder.chmod(0o755)
    make_private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    link = home / "link"
    link.symlink_to(folder)
    with pytest.raises(ConfigurationError, match="not a folder of this user"):
        make_private_folder(link)


def test_a_path_that_the_system_cannot_hold_is_told_with_numbers(home):
    with pytest.raises(ConfigurationError, match="103"), listening(home / ("x" * 120), None):
        pass


def test_port_0_takes_a_free_one_and_a_taken_one_is_busy(home):
    with listening(None, TcpAddress("127.0.0.1", 0)) as listeners:
        assert listeners.tcp is not None
        assert listeners.tcp.port > 0
        taken = pytest.raises(BusyError, match=f"Port {listeners.tcp.port}")
        with taken, listening(home / "o.sock", listeners.tcp):
            pass
    assert not (home / "o.sock").exists()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("localhost:8080", TcpAddress("127.0.0.1", 8080)),
        ("127.1.2.3:1", TcpAddress("127.1.2.3", 1)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
    ],
)
def test_loopback_addresses(text, address):
    assert parse_tcp(text) == address


@pytest.mark.parametrize(
    "text", ["0.0.0.0:1", "[::]:1", "192.168.0.2:80", "example.org:80", "*:80", "localhost.x:1"]
)
def test_anything_wider_needs_a_token_and_tls(text):
    with pytest.raises(UsageError, match="token and TLS"):
        parse_tcp(text)


@pytest.mark.parametrize("text", ["", "8080", ":80", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:65536"])
def test_no_address(text):
    with pytest.raises(UsageError):
        parse_tcp(text)
