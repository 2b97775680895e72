"""`overspill service`: what it writes, what it leaves alone, and a socket that is passed."""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from overspill.cli.units import LABEL, Manager, this_manager
from overspill.config import Places, child_environment
from overspill.errors import ConfigurationError, UsageError
from overspill_edge.listen import passed_socket
from overspill_edge.service import UnitOptions, kept_environment, unit_texts, write_units

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs launchd or systemd")


def options_in(root, environment=None) -> UnitOptions:
    places = Places(*(root / name for name in ("config", "data", "state", "cache", "run")))
    return UnitOptions(places, environment or {})


@pytest.fixture
def units(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    return this_manager


@dataclass
class ServiceCommand:
    """`overspill service` where no service manager can be reached."""

    home: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        extra = {
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "xdg"),
            "OVERSPILL_HOME": str(self.home / "o"),
            "XDG_RUNTIME_DIR": str(self.home / "none"),
            "DBUS_SESSION_BUS_ADDRESS": "disabled:",
        }
        return subprocess.run(
            [sys.executable, "-m", "overspill.cli.main", "service", *arguments],
            env=child_environment(extra),
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def service(home):
    return ServiceCommand(home)


def test_the_service_unit_names_the_interpreter_and_hardens(units):
    manager = units("systemd")
    texts = unit_texts(manager, options_in(Path("/srv/her home"), {"OVERSPILL_HOME": "/srv/100%"}))
    service, socket_unit = (texts[file] for file in manager.files)
    assert f'ExecStart="{sys.executable}" "-P" "-m" "overspill.cli.main" "serve"' in service
    assert '"--log-file" "/srv/her home/state/log/daemon.log"' in service
    assert 'Environment="OVERSPILL_HOME=/srv/100%%"' in service
    for line in ("NoNewPrivileges=yes", "PrivateTmp=yes", "UMask=0077", "LimitCORE=0"):
        assert line in service.splitlines()
    assert "ListenStream=/srv/her home/run/overspill.sock" in socket_unit
    assert "SocketMode=0600" in socket_unit.splitlines()


def test_an_installation_below_tmp_is_not_hidden_from_its_own_daemon(units):
    texts = unit_texts(units("systemd"), options_in(Path("/tmp/x")))
    assert not any("PrivateTmp=yes" in text for text in texts.values())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_takes_the_units(units, tmp_path):
    manager = units("systemd")
    odd = Path(tempfile.gettempdir()) / 'a "b" $HOME %n'  # nothing is made there
    write_units(unit_texts(manager, options_in(odd, {"OVERSPILL_HOME": str(odd)})))
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", *map(str, manager.files)],
        capture_output=True,
        text=True,
        timeout=60,
        env=child_environment({"XDG_RUNTIME_DIR": str(tmp_path)}),
    )
    told = [line for line in done.stderr.splitlines() if "overspill." in line]
    assert (done.returncode, told) == (0, []), done.stderr


def test_the_property_list_parses_and_keeps_the_daemon_alive(units):
    manager = units("launchd")
    ((file, text),) = unit_texts(
        manager, options_in(Path("/Users/a&b"), {"OVERSPILL_PRIVACY": "device"})
    ).items()
    assert file.name == f"{LABEL}.plist"
    assert file.parent.name == "LaunchAgents"
    read = plistlib.loads(text.encode())
    assert read["ProgramArguments"][0] == sys.executable
    assert read["ProgramArguments"][-1] == "/Users/a&b/state/log/daemon.log"
    assert read["KeepAlive"] == {"SuccessfulExit": False}
    assert read["EnvironmentVariables"] == {"OVERSPILL_PRIVACY": "device"}
    assert read["Umask"] == 0o077


def test_a_floor_that_was_set_holds_in_the_service_and_nothing_else_is_taken_along():
    environ = {"OVERSPILL_PRIVACY": "device", "OPENAI_API_KEY": "sk-1", "OVERSPILL_MODEL": ""}
    assert kept_environment(environ) == {"OVERSPILL_PRIVACY": "device"}


def test_a_path_that_would_add_a_line_to_a_unit_is_refused(units):
    with pytest.raises(ConfigurationError, match="control character"):
        unit_texts(units("systemd"), options_in(Path("/srv/a\nExecStart=/bin/false")))


def test_a_file_of_somebody_else_is_left_alone(units):
    manager: Manager = units("systemd")
    mine, theirs = manager.files
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[Unit]\n")
    with pytest.raises(UsageError, match="not written by overspill"):
        write_units(unit_texts(manager, options_in(Path("/srv/x"))))
    assert not mine.exists()
    assert theirs.read_text() == "[Unit]\n"
    assert manager.installed == ()


def test_install_status_uninstall_where_no_manager_answers_say_the_commands(service):
    installed = service.run("install", "--manager", "systemd", "--json")
    assert installed.returncode == 0, installed.stderr
    document = json.loads(installed.stdout)
    assert document["installed"] is True
    assert len(document["files"]) == 2
    assert document["commands"][-1] == {
        "command": "systemctl --user enable --now overspill.socket",
        "ran": False,
        "error": None,
    }
    shown = service.run("status", "--manager", "systemd")
    assert "installed; the daemon does not run" in shown.stdout
    removed = service.run("uninstall", "--manager", "systemd")
    assert removed.returncode == 0, removed.stderr
    assert "run:  systemctl --user disable --now overspill.socket" in removed.stdout
    assert not any(os.path.exists(file) for file in document["files"])


def test_a_dry_run_shows_the_files_and_writes_none(service):
    shown = service.run("install", "--dry-run", "--manager", "systemd")
    assert "NoNewPrivileges=yes" in shown.stdout
    assert "run:  systemctl --user daemon-reload" in shown.stdout
    assert not (service.home / "xdg").exists()


def test_install_beside_a_daemon_started_by_hand_is_refused(command, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(command.home / "xdg"))
    with command.serving():
        refused = command.run("service", "install", "--manager", "systemd")
        running = json.loads(command.run("service", "status", "--json").stdout)["running"]
    assert refused.returncode == 7
    assert "already serves" in refused.stderr
    assert running is True


_LAUNCHER = """
import os, socket, sys
path, kind, *command = sys.argv[1:]
os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
os.umask(0o177 if kind != "open" else 0)
listener = socket.socket(socket.AF_UNIX)
if kind == "tcp":
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
else:
    listener.bind(path)
listener.listen()
os.umask(0o077)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="2" if kind == "two" else "1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *command])
"""
"""A service manager in a few lines: it listens, and becomes the daemon with the socket as 3."""


@contextmanager
def activated(command, kind="private"):
    path = str(command.home / "passed" / "o.sock")
    process = subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, path, kind, "-m", "overspill.cli.main", "serve"],
        env=command.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process, path
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_daemon_answers_on_the_socket_that_it_was_passed_and_leaves_its_file(command):
    body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
    with activated(command) as (process, path):
        assert process.stdout is not None
        assert path in process.stdout.readline()
        transport = httpx2.HTTPTransport(uds=path)
        with httpx2.Client(transport=transport, base_url="http://localhost", timeout=60) as http:
            answer = http.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == "echo: hello"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert os.path.exists(path)  # the manager listens on; the next connection starts it again


@pytest.mark.parametrize(
    ("kind", "named"),
    [("tcp", "no listening Unix"), ("two", "2 sockets"), ("open", "others may open")],
)
def test_a_socket_that_would_let_others_in_is_refused(command, kind, named):
    with activated(command, kind) as (process, _):
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert named in err
    assert len(err.strip().splitlines()) == 1


def test_a_socket_for_another_process_is_not_taken():
    assert passed_socket({"LISTEN_FDS": "1", "LISTEN_PID": "1"}) is None
    assert passed_socket({}) is None
