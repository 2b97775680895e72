"""A daemon of the service manager's is replaced by the manager, and never by hand beside it."""

import json

import pytest

from overspill.cli.units import MARK, UPGRADE, how_to_replace, this_manager


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Unit files in a home of the test's."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user" / "xdg"))
    assert how_to_replace() == UPGRADE
    for file in this_manager().files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# {MARK}\n")


def test_an_upgrade_by_hand_is_refused_with_the_managers_command(installed, overspill):
    refused = overspill("serve", "--upgrade")
    assert refused.code == 2
    assert refused.err.strip().endswith(" ".join(this_manager().restart_daemon))


def test_the_doctor_names_an_older_daemon_and_who_replaces_it(installed, overspill, home):
    fcntl = pytest.importorskip("fcntl")
    state = home / "state"
    state.mkdir(mode=0o700)
    record = {"pid": 7, "version": "0.0.1", "socket": None, "tcp": None, "since_unix": 0}
    (state / "daemon.json").write_text(json.dumps(record))
    with (state / "daemon.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = {c["name"]: c for c in overspill("doctor", "--json").json["checks"]}["daemon"]
    assert told["ok"] is False
    assert "version 0.0.1" in told["detail"]
    assert told["detail"].endswith(how_to_replace())
