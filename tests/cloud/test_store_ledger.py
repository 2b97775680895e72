"""The ledger: append-only, written in groups, through a full disk and a server that is gone."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from overspill.errors import BusyError
from overspill_cloud.database import Database
from overspill_cloud.ledger_writer import LedgerWriter, WriterLimits, WriterNews
from overspill_cloud.store import Store, StoreUnavailable, UsageEntry

QUICK = WriterLimits(max_backlog=4, first_retry_s=0.01, max_retry_s=0.02, close_timeout_s=0.05)
WAIT_S = 30


def entry(number: int, model: str = "m") -> UsageEntry:
    return UsageEntry(number.to_bytes(16, "big"), 0, b"t" * 32, 90, model, 5, 7, "stop")


class News:
    """Hears what the writer tells."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.failed = threading.Event()
        self.lines_lost = 0

    def sinks(self) -> WriterNews:
        return WriterNews(
            self._failed, lambda: self.heard.append("recovered"), self._refused, self._lost
        )

    def _failed(self, error: StoreUnavailable) -> None:
        self.heard.append("failed")
        self.failed.set()

    def _refused(self, error: Exception) -> None:
        self.heard.append("refused")

    def _lost(self, lines: int) -> None:
        self.lines_lost = lines


def fill_disk(store: Store, pages: int | None) -> None:
    """Let SQLite's file grow no further (or again): it says then what it says on a full disk."""
    engine = store._backend.engine
    engine.dispose()
    limit = 1 << 30 if pages is None else pages

    def set_limit(connection, _record) -> None:
        connection.execute(f"PRAGMA max_page_count={limit}")

    sa.event.listen(engine, "connect", set_limit)


@pytest.mark.parametrize(
    "statement", ["UPDATE usage_ledger SET attempt = 9", "DELETE FROM usage_ledger"]
)
def test_no_line_is_changed_or_removed(store, statement):
    store.append_usage(entry(1))
    with (
        pytest.raises(sa.exc.DatabaseError, match="append-only"),
        store._backend.engine.begin() as db,
    ):
        db.exec_driver_sql(statement)
    assert len(store.usage()) == 1


def test_everything_put_is_written_in_few_commits(store):
    writer = LedgerWriter(store)
    for number in range(500):
        writer.put(entry(number))
    assert writer.wait(WAIT_S)
    assert len(store.usage()) == 500
    writer.close()


def test_closing_writes_what_waits(open_store):
    writer, reader = LedgerWriter(open_store()), open_store()
    for number in range(50):
        writer.put(entry(number))
    writer.close()
    assert len(reader.usage()) == 50


def test_a_line_that_comes_after_the_end_is_lost_and_told(store):
    news = News()
    writer = LedgerWriter(store, news.sinks())
    writer.put(entry(1))
    writer.close()
    writer.put(entry(2))
    assert news.lines_lost == 1
    assert writer.backlog == 0
    assert len(store.usage()) == 1


def test_a_line_that_is_not_taken_holds_no_other_back(store):
    news = News()
    writer = LedgerWriter(store, news.sinks())
    poison = UsageEntry(b"p" * 16, 0, b"t" * 32, 90, "m", 1 << 70, 0, "stop")
    for line in (entry(1), poison, entry(2)):
        writer.put(line)
    assert writer.wait(WAIT_S)
    assert [line["request_id"] for line in store.usage()] == [n.to_bytes(16, "big") for n in (1, 2)]
    assert "refused" in news.heard
    writer.close()


def test_a_full_disk_loses_nothing_and_refuses_who_comes(tmp_path):
    store, news = Store(tmp_path), News()
    fill_disk(store, 1)
    writer = LedgerWriter(store, news.sinks(), QUICK)
    for number in range(2000):
        writer.put(entry(number, "m" * 200))
    assert news.failed.wait(WAIT_S)
    assert writer.is_full
    fill_disk(store, None)
    assert writer.wait(WAIT_S)
    assert news.heard == ["failed", "recovered"]
    assert len(store.usage()) == 2000
    writer.close()
    store.close()


def test_a_full_disk_at_the_end_says_what_is_lost(tmp_path):
    store, news = Store(tmp_path), News()
    fill_disk(store, 1)
    writer = LedgerWriter(store, news.sinks(), QUICK)
    for number in range(2000):
        writer.put(entry(number, "m" * 200))
    assert news.failed.wait(WAIT_S)
    writer.close()
    assert news.lines_lost == 2000 - len(store.usage())
    assert news.lines_lost
    store.close()


def test_a_server_that_comes_back_gets_all(postgres, cloud, tmp_path, request):
    url = postgres.new_database()
    from overspill_cloud.store import open_backend
    from overspill_cloud.store.schema import upgrade

    backend = open_backend(tmp_path, url)
    upgrade(backend)
    backend.close()
    store, news = Store(tmp_path, url), News()
    writer = LedgerWriter(store, news.sinks(), QUICK)
    writer.put(entry(1))
    assert writer.wait(WAIT_S)
    postgres.stop()
    try:
        for number in range(2, 10):
            writer.put(entry(number))
        assert news.failed.wait(WAIT_S)
        with pytest.raises(BusyError) as caught:
            store.device(b"x" * 32)
        assert caught.value.reason == "STATE"
        assert "pg-" not in str(caught.value)
    finally:
        postgres.start()
    assert writer.wait(WAIT_S)
    assert len(store.usage()) == 9
    writer.close()
    store.close()


@pytest.mark.anyio
async def test_a_full_backlog_refuses_before_anything_is_asked(open_store):
    database = Database(open_store(), writer=WriterLimits(max_backlog=0))
    with pytest.raises(StoreUnavailable):
        database.check_ledger()
    database.close()


@pytest.mark.anyio
async def test_a_call_that_does_not_come_back_is_refused_and_so_are_the_next(
    open_store, monkeypatch
):
    monkeypatch.setattr("overspill_cloud.database.CALL_TIMEOUT_S", 0.05)
    database, thaw = Database(open_store()), threading.Event()
    with pytest.raises(StoreUnavailable):
        await database.call(thaw.wait)
    with pytest.raises(StoreUnavailable):
        await database.call(lambda: None)
    thaw.set()
    monkeypatch.undo()
    import anyio

    with anyio.fail_after(WAIT_S):
        while database._stuck:
            await anyio.lowlevel.checkpoint()
    assert await database.call(lambda: 7) == 7
    database.close()
