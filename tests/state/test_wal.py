"""Several processes of one user, or replicas of one node, open a new file at the same moment."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing

import pytest

from overspill.state.receipts import ReceiptStore
from overspill.state.spending import SpendingStore
from overspill.wal import use_wal
from overspill_cloud.store.backend import FILE_NAME, open_sqlite


@pytest.fixture
def writing():
    """Has the file's write lock for a while, in the mode that new files have."""
    opened, timers = [], []

    def hold(path, seconds):
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        opened.append(db)
        db.execute("BEGIN IMMEDIATE")
        timers.append(threading.Timer(seconds, db.execute, ["COMMIT"]))
        timers[-1].start()

    yield hold
    for timer in timers:
        timer.join()
    for db in opened:
        db.close()


def open_receipts(folder):
    assert ReceiptStore(folder / FILE_NAME).list() == []


def open_spending(folder):
    assert SpendingStore(folder / FILE_NAME).sums() == []


def open_node(folder):
    with closing(open_sqlite(folder)) as backend, backend.driver() as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("opens", [open_receipts, open_spending, open_node])
def test_a_file_that_another_writes_is_waited_for(tmp_path, writing, opens):
    writing(tmp_path / FILE_NAME, 0.3)
    opens(tmp_path)


def test_it_waits_no_longer_than_the_connection(tmp_path, writing):
    writing(tmp_path / FILE_NAME, 1.0)
    began = time.monotonic()
    with (
        closing(sqlite3.connect(tmp_path / FILE_NAME, timeout=0.1)) as db,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        use_wal(db)
    assert time.monotonic() - began >= 0.1


def test_what_is_no_lock_is_not_waited_for(tmp_path):
    path = tmp_path / FILE_NAME
    path.write_bytes(b"no database at all" * 100)
    with (
        closing(sqlite3.connect(path, timeout=60)) as db,
        pytest.raises(sqlite3.DatabaseError, match="not a database"),
    ):
        use_wal(db)


def test_receipts_of_an_earlier_version_get_their_columns_once(tmp_path):
    """Two that open the file at once both find them missing."""
    path = tmp_path / FILE_NAME
    ReceiptStore(path).list()
    with closing(sqlite3.connect(path)) as db, db:
        for name in ("evidence", "verdict", "device_public_der", "device_signature"):
            db.execute(f"ALTER TABLE receipts DROP COLUMN {name}")
    failed = []
    ready = threading.Barrier(4)

    def work():
        ready.wait()
        try:
            ReceiptStore(path).list()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
