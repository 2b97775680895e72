"""`overspill purge`: real folders, real links, a real lock; what is not ours stays."""

import fcntl
import json
import os
import sys

import pytest

from overspill.cli.leavings import find_leavings
from overspill.cli.units import MARK, this_manager
from overspill.config import Places, default_places

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX folders")


@pytest.fixture(autouse=True)
def own_units(tmp_path, monkeypatch):
    """Unit files in a home of the test's; no service manager is reached from it."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user" / "xdg"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "disabled:")


@pytest.fixture
def terminal(monkeypatch):
    """Somebody at a terminal, who answers a question."""

    def answers(text):
        reader, writer = os.openpty()
        os.write(reader, f"{text}\n".encode())
        monkeypatch.setattr(sys, "stdin", os.fdopen(writer, "r"))

    return answers


def put(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def filled(home):
    """A home as use leaves it."""
    for name in (
        "state/receipts.sqlite", "state/receipts.sqlite-wal", "state/pace.json", "state/device-key",
        "state/tokens.json", "state/tokens.json.lock", "state/log/daemon.log.1",
        "run/overspill.sock.lock", "state/cloud/node.sqlite3", "cache/bench/m.gguf",
        "state/daemon.json", "state/daemon.lock", "state/daemon.123", "run/overspill-next.sock",
        "state/cloud/dev-ed25519.key", "state/cloud/dev-ed25519.pub", "state/cloud/fleet.addresses",
        "state/cloud/.fleet.addresses.k3x", "state/cloud/swtpm/tpm2-00.permall",
        "state/pace.123.new",
        "data/models/.pulling/half/w.gguf.partial",
    ):  # fmt: skip
        put(home / name)
    note = {"sha256": {"w.gguf": "00", "parts/2[a].gguf": "00"}}
    put(home / "data/models/small/model.json", json.dumps(note))
    put(home / "data/models/small/w.gguf", "w" * 5000)
    put(home / "data/models/small/parts/2[a].gguf")
    return home


def test_everything_goes_after_a_list_with_sizes(filled, overspill):
    for file in this_manager().files:
        put(file, f"# {MARK}\n")
    listed = overspill("purge", "--dry-run")
    assert listed.code == 0
    assert "kB" in listed.out
    assert "receipts.sqlite" in os.listdir(filled / "state")
    done = overspill("purge", "--yes", "--json")
    assert done.code == 0, done.err
    assert not filled.exists()
    assert not any(file.exists() for file in this_manager().files)
    model = next(p for p in done.json["places"] if p["path"].endswith("models/small"))
    assert model["bytes"] > 5000
    assert done.json["removed"] is True
    assert overspill("purge", "--yes").out.startswith("Nothing of overspill")


def test_what_overspill_did_not_make_is_listed_and_stays(filled, overspill):
    foreign = [
        put(filled / "state" / "diary.txt"),
        put(filled / "config" / "trust.toml"),
        put(filled / "data" / "models" / "small" / "notes.md"),
        put(filled / "data" / "models" / "mine" / "own.gguf"),
        put(filled / "cache" / "other" / "thing"),
        put(this_manager().files[0], "[Unit]\n"),
    ]
    done = overspill("purge", "--yes", "--json")
    assert done.code == 0
    assert all(path.exists() for path in foreign)
    left = {p for p in filled.rglob("*") if p.is_file()}
    assert left == set(foreign[:-1])
    assert str(foreign[0]) in done.json["kept"]


def test_no_link_is_followed_out_of_the_folders(filled, overspill, tmp_path):
    outside = put(tmp_path / "outside" / "w.gguf")
    (filled / "data" / "models" / "linked").symlink_to(outside.parent)
    (filled / "state" / "pace.json").unlink()
    (filled / "state" / "pace.json").symlink_to(outside)
    (filled / "cache" / "bench" / "out").symlink_to(outside.parent)
    (filled / "state" / "tuf").symlink_to(outside.parent)
    done = overspill("purge", "--yes", "--json")
    assert done.code == 0, done.err
    assert outside.read_text() == "x"
    assert {str(filled / "state" / "tuf"), str(filled / "state" / "pace.json")} <= set(
        done.json["kept"]
    )
    assert not (filled / "cache").exists()


def test_a_note_that_points_out_of_its_folder_removes_nothing_there(filled, overspill):
    victim = put(filled / "data" / "models" / "victim.txt")
    note = {"sha256": {"../victim.txt": "00", "/etc/hostname": "00"}}
    (filled / "data" / "models" / "small" / "model.json").write_text(json.dumps(note))
    assert overspill("purge", "--yes").code == 0
    assert victim.exists()


def test_without_a_terminal_it_says_the_command_and_removes_nothing(filled, overspill, monkeypatch):
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    before = sorted(filled.rglob("*"))
    refused = overspill("purge")
    assert refused.code == 2
    assert "overspill purge --yes" in refused.err
    as_json = overspill("purge", "--json")
    assert (as_json.code, as_json.json["error"]["code"]) == (2, "usage")
    assert sorted(filled.rglob("*")) == before


@pytest.mark.parametrize(("answer", "code", "gone"), [("y", 0, True), ("n", 130, False)])
def test_at_a_terminal_it_asks(filled, overspill, terminal, answer, code, gone):
    terminal(answer)
    asked = overspill("purge")
    assert asked.code == code
    assert "Remove all of it" in asked.err
    assert filled.exists() is not gone


def test_while_a_daemon_runs_nothing_is_removed(filled, overspill):
    before = sorted(filled.rglob("*"))
    with (filled / "run" / "overspill.sock.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = overspill("purge", "--yes")
    assert refused.code == 7
    assert "serve" in refused.err
    assert sorted(filled.rglob("*")) == before
    assert overspill("purge", "--yes").code == 0


def test_a_daemon_that_listens_elsewhere_is_found_by_its_users_lock(filled, overspill):
    with (filled / "state" / "daemon.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert overspill("purge", "--yes").code == 7
    assert overspill("purge", "--yes").code == 0


def test_under_a_node_that_runs_nothing_is_removed(filled, overspill):
    from overspill_cloud.store import Store

    (filled / "state" / "cloud" / "node.sqlite3").unlink()
    node = Store(filled / "state" / "cloud", None)
    node.devices()
    refused = overspill("purge", "--yes")
    assert (refused.code, "overspill-cloud" in refused.err) == (7, True)
    assert node.devices() == []
    node.close()
    assert overspill("purge", "--yes").code == 0
    assert not filled.exists()


def test_what_cannot_be_removed_is_named(filled, overspill, monkeypatch):
    if os.geteuid() == 0:
        pytest.skip("root may remove everything")
    (filled / "state" / "log").chmod(0o500)
    failed = overspill("purge", "--yes")
    (filled / "state" / "log").chmod(0o700)
    assert failed.code == 2
    assert "daemon.log.1" in failed.err


def test_keys_in_the_keychain_go_too(filled, overspill):
    keyring = pytest.importorskip("keyring")
    from keyring.backend import KeyringBackend

    class Memory(KeyringBackend):
        priority = 5

        def __init__(self):
            super().__init__()
            self.kept = {}

        def get_password(self, service, username):
            return self.kept.get((service, username))

        def set_password(self, service, username, password):
            self.kept[service, username] = password

        def delete_password(self, service, username):
            del self.kept[service, username]

    before, memory = keyring.get_keyring(), Memory()
    name = str((default_places().state / "device-key").absolute())
    memory.kept = {("overspill", name): "damaged", ("mail", "me"): "secret"}
    keyring.set_keyring(memory)
    try:
        done = overspill("purge", "--yes", "--json")
    finally:
        keyring.set_keyring(before)
    assert done.json["keys"] == [f"the keychain entry overspill/{name}"]
    assert memory.kept == {("mail", "me"): "secret"}


def test_where_all_places_are_one_folder_nothing_of_ours_counts_as_foreign(tmp_path):
    one = tmp_path / "overspill"  # as on macOS
    for name in ("config.toml", "receipts.sqlite", "models/m/model.json"):
        put(one / name, '{"sha256": {}}')
    found = find_leavings(Places(one, one, one, tmp_path / "cache", one / "run"))
    assert found.kept == ()
    assert len({file for leaving in found.ours for file in leaving.files}) == 3
