"""Schemas: upgraded while they are used, checked, backed up."""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import stat
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from overspill.errors import ConfigurationError
from overspill.terminal import run_app
from overspill_cloud.cli import app
from overspill_cloud.store import FILE_NAME, SCHEMA_VERSION, Store, UsageEntry, open_backend
from overspill_cloud.store.backend import StoreUnavailable
from overspill_cloud.store.check import check
from overspill_cloud.store.schema import MIGRATIONS, differences, found, upgrade

FIRST_SCHEMA = """
CREATE TABLE devices (thumbprint BLOB NOT NULL, public_der BLOB NOT NULL,
  label VARCHAR(64) NOT NULL,
  enrolled_unix INTEGER NOT NULL, not_after_unix INTEGER NOT NULL, revoked_unix INTEGER,
  PRIMARY KEY (thumbprint));
CREATE TABLE enrolment_codes (code_sha256 BLOB NOT NULL, expires_unix INTEGER NOT NULL,
  used_unix INTEGER, PRIMARY KEY (code_sha256));
CREATE TABLE device_rotations (old_thumbprint BLOB NOT NULL, new_thumbprint BLOB NOT NULL,
  rotated_unix INTEGER NOT NULL, PRIMARY KEY (old_thumbprint));
CREATE TABLE replay_window (thumbprint BLOB NOT NULL, request_id BLOB NOT NULL,
  seen_unix INTEGER NOT NULL, PRIMARY KEY (thumbprint, request_id));
CREATE INDEX ix_replay_window_seen_unix ON replay_window (seen_unix);
CREATE TABLE usage_ledger (request_id BLOB NOT NULL, attempt INTEGER NOT NULL,
  thumbprint BLOB NOT NULL, minute_unix INTEGER NOT NULL, model VARCHAR(256) NOT NULL,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, outcome VARCHAR(32) NOT NULL,
  PRIMARY KEY (request_id, attempt));
CREATE TRIGGER usage_ledger_no_update BEFORE update ON usage_ledger
  BEGIN SELECT RAISE(ABORT, 'the usage ledger is append-only'); END;
CREATE TRIGGER usage_ledger_no_delete BEFORE delete ON usage_ledger
  BEGIN SELECT RAISE(ABORT, 'the usage ledger is append-only'); END;
PRAGMA user_version = 1;
"""
OLD_LINE = "INSERT INTO usage_ledger VALUES (?, 0, ?, 60, 'm', 5, 7, 'stop')"
OLD_LINE_NAMED = (
    "INSERT INTO usage_ledger (request_id, attempt, thumbprint, minute_unix, model, prompt_tokens,"
    " completion_tokens, outcome) VALUES (?, 0, ?, 60, 'm', 5, 7, 'stop')"
)


@pytest.fixture
def old_file(tmp_path) -> Path:
    """A state folder as the version before left it."""
    folder = tmp_path / "old"
    folder.mkdir()
    with closing(sqlite3.connect(folder / FILE_NAME)) as db, db:
        db.executescript("PRAGMA journal_mode=WAL;" + FIRST_SCHEMA)
        for name in (b"a", b"b", b"c"):
            db.execute(
                "INSERT INTO devices VALUES (?, x'00', 'x', 1, 9999999999, NULL)", (name * 32,)
            )
        db.execute("INSERT INTO device_rotations VALUES (?, ?, 5)", (b"a" * 32, b"b" * 32))
        db.execute("INSERT INTO device_rotations VALUES (?, ?, 6)", (b"b" * 32, b"c" * 32))
        db.execute(OLD_LINE, (b"1" * 16, b"a" * 32))
    return folder


def line(number: int, tokens: int = 5, period: int = 86_400) -> UsageEntry:
    key = number.to_bytes(16, "big")
    return UsageEntry(key, 0, b"t" * 32, 90, "m", tokens, 0, "stop", b"", period, None)


def test_a_file_of_the_version_before_is_upgraded_with_all_it_holds(old_file):
    store = Store(old_file)
    assert [device.account for device in store.devices()] == [b"a" * 32] * 3
    assert store.device(b"a" * 32).quota_account is None
    [kept] = store.usage()
    assert (kept["request_id"], kept["period_unix"]) == (b"1" * 16, 0)
    with closing(open_backend(old_file)) as backend:
        assert check(backend, 0).is_good
    store.close()


def test_a_node_of_the_version_before_goes_on_through_an_upgrade(old_file):
    stop, written = threading.Event(), []

    def write() -> None:
        with closing(sqlite3.connect(old_file / FILE_NAME, timeout=30)) as db:
            while not stop.is_set() or len(written) < 20:
                key = b"old" + len(written).to_bytes(13, "big")
                with db:
                    db.execute(OLD_LINE_NAMED, (key, b"a" * 32))
                written.append(key)

    node = threading.Thread(target=write)
    node.start()
    with closing(open_backend(old_file)) as backend:
        assert upgrade(backend) == (1, SCHEMA_VERSION)
        stop.set()
        node.join()
        assert check(backend, 0).is_good
        assert check(backend, 0).ledger_lines == len(written) + 1


def test_an_upgrade_waits_for_a_writer_longer_than_requests_do(old_file, monkeypatch):
    monkeypatch.setattr("overspill_cloud.store.backend.LOCK_TIMEOUT_S", 0.1)
    with closing(open_backend(old_file)) as backend:
        with closing(sqlite3.connect(old_file / FILE_NAME, check_same_thread=False)) as busy:
            busy.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable), backend.write():
                pass
            lets_go = threading.Timer(0.3, busy.rollback)
            lets_go.start()
            assert upgrade(backend) == (1, SCHEMA_VERSION)
            lets_go.join()
        with backend.driver() as db:  # requests wait as long as before
            assert db.execute("PRAGMA busy_timeout").fetchone() == (100,)


def test_an_upgrade_of_a_file_that_stays_locked_says_so(old_file, monkeypatch):
    monkeypatch.setattr("overspill_cloud.store.schema.PATIENCE_S", 0.1)
    with closing(open_backend(old_file)) as backend:
        with closing(sqlite3.connect(old_file / FILE_NAME)) as busy:
            busy.execute("BEGIN IMMEDIATE")
            with pytest.raises(ConfigurationError, match="another process keeps it locked"):
                upgrade(backend)
        assert upgrade(backend) == (1, SCHEMA_VERSION)


def test_migrations_and_tables_are_the_same(store):
    assert differences(store._backend) == []


def test_the_newest_migration_is_this_versions_schema():
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == f"{SCHEMA_VERSION:04}"


def test_replicas_that_upgrade_at_once_do_it_once(tmp_path, database, request):
    url = None if database is None else request.getfixturevalue("postgres").new_database()
    backends = [open_backend(tmp_path / "several", url) for _ in range(3)]
    failed = []

    def work(index: int) -> None:
        try:
            upgrade(backends[index])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [found(backend) for backend in backends] == [SCHEMA_VERSION] * 3
    for backend in backends:
        backend.close()


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(old_file):
    with closing(sqlite3.connect(old_file / FILE_NAME)) as db, db:
        db.execute("CREATE TABLE quota_leases (somebody_elses INTEGER)")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        Store(old_file)
    with closing(sqlite3.connect(old_file / FILE_NAME)) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(devices)")]
        assert "quota_tokens" not in columns
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


def test_a_newer_schema_is_refused_by_name(store, open_store):
    with store._backend.engine.begin() as db:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '0099'")
    with pytest.raises(ConfigurationError, match="schema 99"):
        open_store()


def test_a_newer_file_is_refused_by_its_number(tmp_path):
    store = Store(tmp_path)
    with sqlite3.connect(store.path) as db:
        db.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(ConfigurationError, match="99"):
        Store(tmp_path)


def test_a_fleets_database_is_upgraded_by_its_operator(postgres, tmp_path, capsys):
    url = postgres.new_database()
    with pytest.raises(ConfigurationError, match="db upgrade"):
        Store(tmp_path, url)
    assert run_app(app, "overspill-cloud", ["db", "upgrade", "--database", url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["before"], told["after"]) == (0, SCHEMA_VERSION)
    Store(tmp_path, url).close()


def test_check_finds_drift_and_a_missing_trigger(store):
    store.append_usage(line(1), line(2))
    assert check(store._backend, 0).is_good
    guard = "usage_ledger_no_delete"
    on = " ON usage_ledger" if store.is_shared else ""
    with store._backend.engine.begin() as db:
        db.exec_driver_sql("UPDATE quota_usage SET spent_tokens = spent_tokens + 1")
        db.exec_driver_sql(f"DROP TRIGGER {guard}{on}")
    said = check(store._backend, 0)
    assert not said.is_good
    assert [(drift.ledger_tokens, drift.quota_tokens) for drift in said.drift] == [(10, 11)]
    assert any(guard in problem for problem in said.problems)


def test_check_finds_a_damaged_file(tmp_path, capsys):
    store = Store(tmp_path)
    store.append_usage(*(line(number) for number in range(2000)))
    store.close()
    data = bytearray(store.path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4096] = b"\xff" * 4096
    store.path.write_bytes(data)
    assert run_app(app, "overspill-cloud", ["db", "check", "--state", str(tmp_path)]) != 0


def test_check_says_what_is_there_and_makes_nothing(tmp_path, capsys):
    Store(tmp_path / "node").close()
    assert run_app(app, "overspill-cloud", ["db", "check", "--state", str(tmp_path / "node")]) == 0
    assert "all good" in capsys.readouterr().out
    assert run_app(app, "overspill-cloud", ["db", "check", "--state", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none" / FILE_NAME).exists()


def test_a_backup_is_whole_private_and_of_one_moment_while_a_node_writes(tmp_path, capsys):
    store, target = Store(tmp_path / "node"), tmp_path / "copy.db"
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            store.append_usage(*(line(number + n) for n in range(20)))
            number += 20

    node = threading.Thread(target=write)
    node.start()
    words = ["db", "backup", "--state", str(tmp_path / "node"), "--to", str(target)]
    assert run_app(app, "overspill-cloud", words) == 0
    stop.set()
    node.join()
    store.close()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    (tmp_path / "restored").mkdir()
    target.rename(tmp_path / "restored" / FILE_NAME)
    with closing(open_backend(tmp_path / "restored")) as backend:
        said = check(backend, 0)
    assert said.is_good
    assert said.ledger_lines % 20 == 0


def test_a_backup_overwrites_nothing(tmp_path, capsys):
    Store(tmp_path / "node").close()
    target = tmp_path / "copy.db"
    target.write_text("mine")
    words = ["db", "backup", "--state", str(tmp_path / "node"), "--to", str(target)]
    assert run_app(app, "overspill-cloud", words) == 2
    assert target.read_text() == "mine"


@pytest.fixture
def pg_programs(postgres, monkeypatch):
    """The server's own programs, first on the PATH."""
    monkeypatch.setenv("PATH", f"{postgres.bin}{os.pathsep}{os.environ['PATH']}")


def test_a_backup_of_postgresql_comes_back_by_the_command_that_it_names(
    postgres, pg_programs, tmp_path, capsys
):
    url, again = postgres.new_database(), postgres.new_database()
    with closing(open_backend(tmp_path, url)) as backend:
        upgrade(backend)
    with closing(Store(tmp_path, url)) as store:
        store.append_usage(line(1))
    target = tmp_path / "dump"
    words = ["db", "backup", "--database", url, "--to", str(target), "--json"]
    assert run_app(app, "overspill-cloud", words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == target.stat().st_size > 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    subprocess.run(shlex.split(told["restore"].replace(url, again)), check=True)
    with closing(open_backend(tmp_path, again)) as backend:
        assert check(backend, 0).is_good
        assert check(backend, 0).ledger_lines == 1
    assert run_app(app, "overspill-cloud", words) == 2  # and nothing is written over


def test_a_backup_of_postgresql_that_failed_says_so(postgres, pg_programs, tmp_path, capsys):
    target = tmp_path / "dump"
    url = postgres.url("there_is_no_such_database")
    words = ["db", "backup", "--database", url, "--to", str(target)]
    assert run_app(app, "overspill-cloud", words) == 2
    assert "there_is_no_such_database" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_backup_of_postgresql_without_pg_dump_says_the_command(
    postgres, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    url = postgres.new_database()
    words = ["db", "backup", "--database", url, "--to", str(tmp_path / "dump")]
    assert run_app(app, "overspill-cloud", words) == 2
    said = capsys.readouterr().err
    assert "Nothing was backed up" in said
    assert f"--file={tmp_path / 'dump'}" in said
    assert list(tmp_path.iterdir()) == []


def test_no_column_can_hold_a_prompt_or_an_address(store):
    with store._backend.read() as db:
        inspector = sa.inspect(db)
        texts = {
            f"{table}.{column['name']}"
            for table in inspector.get_table_names()
            for column in inspector.get_columns(table)
            if isinstance(column["type"], sa.String)
        }
    assert texts == {
        "devices.label",
        "usage_ledger.model",
        "usage_ledger.outcome",
        "alembic_version.version_num",
    }
