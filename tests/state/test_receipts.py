"""The receipt store keeps what it was given, once, and for its owner only."""

import stat

import pytest

from overspill.errors import UsageError
from overspill.state.receipts import ReceiptStore
from overspill.types.reply import ReceiptRecord


def record(receipt_id: str, unix_s: int = 1) -> ReceiptRecord:
    return ReceiptRecord(
        receipt_id, "r" * 32, unix_s, "node:1", "SOFTWARE", b"d", b"n", b"k", b"t", b"s"
    )


def test_receipts_survive_and_come_newest_first(tmp_path):
    path = tmp_path / "state" / "receipts.sqlite"
    ReceiptStore(path).add(record("aa11", 1))
    ReceiptStore(path).add(record("bb22", 2))
    ReceiptStore(path).add(record("bb22", 2))
    assert [r.id for r in ReceiptStore(path).list()] == ["bb22", "aa11"]
    assert ReceiptStore(path).get("aa") == record("aa11", 1)


def test_a_prefix_must_name_exactly_one(tmp_path):
    store = ReceiptStore(tmp_path / "r.sqlite")
    store.add(record("ab1"))
    store.add(record("ab2"))
    for wanted in ("ab", "zz", "%"):
        with pytest.raises(UsageError, match="receipt"):
            store.get(wanted)


def test_only_the_owner_may_read_the_file(tmp_path):
    path = tmp_path / "r.sqlite"
    ReceiptStore(path).add(record("aa"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
