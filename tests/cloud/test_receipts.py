"""Receipts kept on the device: named in full, judged again offline, and each field tamper-proof."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from overspill.errors import ReceiptInvalid
from overspill.receipt_records import KeptEvidence, Verdict, signed_bytes
from overspill.receipts import appraise_kept, verify_receipt
from overspill.state.receipts import ReceiptStore
from overspill.types.reply import ReceiptRecord

pytestmark = pytest.mark.anyio


@pytest.fixture
async def kept(cloud, tmp_path):
    """A receipt as a client keeps it, the policy it came under, and the device's key."""
    async with cloud.world(tmp_path) as here:
        key = cloud.device_key()
        engine = await here.enrolled(key=key)
        request = cloud.ask("hello")
        await cloud.collect(engine, request)
        yield engine.record(request.id).receipt, here.policy, key


async def test_it_verifies_with_all_that_is_kept(kept):
    record, policy, key = kept
    assert verify_receipt(record).model == "echo"
    verdict = Verdict.decode(record.verdict)
    assert verdict.evidence_type == "dev-ed25519"
    assert verdict.policy_sha256 == policy.sha256.hex()
    assert record.device_public_der == key.public_der


def changed(record: ReceiptRecord, name: str) -> ReceiptRecord:
    value = getattr(record, name)
    if isinstance(value, int):
        return replace(record, **{name: value + 1})
    if isinstance(value, bytes):
        middle = len(value) // 2
        flipped = value[:middle] + bytes([value[middle] ^ 1]) + value[middle + 1 :]
        return replace(record, **{name: flipped})
    return replace(record, **{name: value[:-1] + ("x" if value[-1] != "x" else "y")})


@pytest.mark.parametrize("name", [f.name for f in fields(ReceiptRecord)])
async def test_each_fields_tampering_is_caught(kept, name):
    record = kept[0]
    with pytest.raises(ReceiptInvalid):
        verify_receipt(changed(record, name))


@pytest.mark.parametrize("name", ["evidence", "verdict", "device_public_der", "device_signature"])
async def test_nothing_of_it_can_be_taken_away(kept, name):
    record = kept[0]
    empty = type(getattr(record, name))()
    with pytest.raises(ReceiptInvalid):
        verify_receipt(replace(record, **{name: empty}))


async def test_each_byte_of_the_receipt_counts(kept):
    record = kept[0]
    for at in range(len(record.data)):
        data = record.data[:at] + bytes([record.data[at] ^ 1]) + record.data[at + 1 :]
        with pytest.raises(ReceiptInvalid):
            verify_receipt(replace(record, data=data))


async def test_a_device_cannot_put_a_better_word_into_the_verifiers_mouth(kept):
    """Signed by the device itself: caught by asking the verifier once more."""
    record, policy, key = kept
    better = replace(Verdict.decode(record.verdict), assurance="HARDWARE_TEE", release="9.9")
    forged = replace(record, assurance="HARDWARE_TEE", verdict=better.encode())
    forged = replace(forged, device_signature=key.sign(signed_bytes(forged)))
    verify_receipt(forged)
    with pytest.raises(ReceiptInvalid, match="another assurance"):
        appraise_kept(forged, policy)


async def test_the_evidence_is_judged_as_of_the_receipts_time(kept):
    record, policy, _ = kept
    appraisal = appraise_kept(record, policy)
    assert appraisal.result is not None
    late = appraise_kept(replace(record, unix_s=record.unix_s + 7200), policy)
    assert late.rejection is not None
    assert late.rejection.step == "4"


async def test_the_kept_evidence_has_one_form(kept):
    data = kept[0].evidence
    assert KeptEvidence.decode(data).encode() == data
    for bad in (b"", data[:5], b"OVSE\x02" + data[5:], data[:40]):
        with pytest.raises(ReceiptInvalid):
            KeptEvidence.decode(bad)


@pytest.mark.parametrize("text", ["[]", "{", '{"assurance": 1}', '{"other": ""}', "[" * 9000])
def test_a_verdict_of_another_form_is_refused(text):
    with pytest.raises(ReceiptInvalid):
        Verdict.decode(text)


async def test_a_receipt_of_an_earlier_version_still_verifies_but_has_no_evidence(kept):
    record, policy, _ = kept
    old = replace(record, evidence=b"", verdict="", device_public_der=b"", device_signature=b"")
    assert verify_receipt(old).model == "echo"
    with pytest.raises(ReceiptInvalid, match="No evidence was kept"):
        appraise_kept(old, policy)


async def test_a_store_keeps_evidence_once_and_reads_older_files(kept, tmp_path):
    import sqlite3

    record = kept[0]
    path = tmp_path / "receipts.sqlite"
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TABLE receipts (id TEXT PRIMARY KEY, request_id TEXT NOT NULL, unix_s INTEGER "
            "NOT NULL, node TEXT NOT NULL, assurance TEXT NOT NULL, data BLOB NOT NULL, "
            "node_key_config BLOB NOT NULL, receipt_public_key BLOB NOT NULL, transcript_th BLOB "
            "NOT NULL, salt BLOB NOT NULL) STRICT"
        )
        db.execute(
            "INSERT INTO receipts VALUES ('old', 'r', 1, 'n', 'NONE', x'', x'', x'', x'', x'')"
        )
    store = ReceiptStore(path)
    store.add(record)
    store.add(replace(record, id="f" * 32))
    assert store.get(record.id) == record
    assert store.get("old").evidence == b""
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM evidence").fetchone() == (1,)
