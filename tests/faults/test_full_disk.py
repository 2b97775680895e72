"""A disk that is really full, below a node (ledger, replay window, SQLite's log, its own log) and
below a device (receipts): typed refusals, and nothing lost once there is room."""

from __future__ import annotations

import asyncio
import signal
from contextlib import closing

import pytest

pytest.importorskip("sqlalchemy")

from faults import disk
from faults.history import record
from faults.nodes import running, until
from faults.rows_road import ask

from overspill.errors import BusyError, ConfigurationError
from overspill.state.receipts import ReceiptStore
from overspill.types.reply import ReceiptRecord
from overspill_cloud.store import Store

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not disk.is_possible(), reason=disk.MISSING),
]
MANY = 2000
"""Requests within which a database has to grow."""


@pytest.fixture
def small(tmp_path):
    try:
        with disk.small_disk(tmp_path / "disk", 4 << 20) as made:
            yield made
    except OSError as error:
        pytest.skip(f"{disk.MISSING}: {error}")


async def test_a_node_on_a_full_disk_refuses_by_name_and_loses_no_line(small):
    with running(small.folder, 1, "--echo-delay-s", "0.005") as fleet:
        await fleet.enrol()
        engine, beside = fleet.client(), fleet.client()
        running_on = asyncio.create_task(record(beside, ask(300, 1)))
        done = [await record(engine, ask(5, 2))]
        small.fill()
        refused = await _until_refused(engine, done)
        assert isinstance(refused, BusyError)
        assert refused.reason == "STATE"
        assert refused.retry_after_s
        assert not any(word in str(refused) for word in (str(small.folder), "sqlite", "OSError"))
        # Who was there before is not harmed.
        done.append(await running_on)
        small.free()
        assert await until(lambda: small.free_bytes > 0, 5) < 5
        done.append(await _until_answered(engine))
        await engine.aclose()
        await beside.aclose()
        assert all(history.is_complete for history in done)
        node = fleet.nodes[0]
        node.signal(signal.SIGTERM)
        assert await asyncio.to_thread(node.process.wait, 30) == 0
    with closing(Store(small.folder / "state")) as store:
        lines = store.usage()
    # One line for each answer, and for a try that was refused none.
    assert sorted(line["completion_tokens"] for line in lines) == sorted(
        history.finish.usage.completion_tokens for history in done
    )


async def _until_refused(engine, done):
    for number in range(MANY):
        history = await record(engine, ask(5, number))
        if history.error is not None:
            return history.error
        done.append(history)
    raise AssertionError("a full disk refused nobody")


async def _until_answered(engine):
    while True:
        history = await record(engine, ask(5, 3))
        if history.is_complete:
            return history
        assert isinstance(history.error, BusyError)
        await asyncio.sleep(0.1)


def _add(store: ReceiptStore, count: int) -> None:
    for number in range(1, count):
        store.add(_receipt(number))


def _receipt(number: int) -> ReceiptRecord:
    return ReceiptRecord(
        *(f"r{number}", "request", number, "node", "NONE"), bytes(900), b"", b"k", b"t", b"s"
    )


def test_a_device_on_a_full_disk_keeps_the_receipts_it_has(small):
    store = ReceiptStore(small.folder / "receipts.sqlite")
    store.add(_receipt(0))
    small.fill()
    with pytest.raises(ConfigurationError, match="Make room"):
        _add(store, MANY)
    small.free()
    kept = len(store.list(MANY))
    store.add(_receipt(MANY))
    assert len(store.list(MANY)) == kept + 1
