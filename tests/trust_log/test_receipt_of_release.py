"""A receipt names the release that answered, offline; and another release is not that one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from overspill.cli.main import main
from overspill.errors import ReceiptInvalid
from overspill.identity.keys import SoftwareKey
from overspill.receipt_records import KeptEvidence, Verdict, make_record, signed_bytes
from overspill.receipts import appraise_kept, verify_receipt
from overspill.sealing.receipt import ReceiptClaims, ReceiptKey
from overspill.state.receipts import ReceiptStore
from overspill.trust.verifier import verify

NOW = 1_800_000_000
TH, SALT, MODEL = bytes([1] * 32), bytes([2] * 32), bytes([3] * 32)


@pytest.fixture
def device():
    return SoftwareKey.generate(NOW + 3600)


@pytest.fixture
def record(world, at, device):
    """What a client keeps of an answer by the released node."""
    bundle = world.bundle()
    result = verify(bundle, at(), world.policy())
    claims = ReceiptClaims(
        nkc_sha256=result.nkc_sha256, th=TH, request_id=bytes(16), request_commitment=bytes(32),
        response_commitment=bytes(32), model="river", model_sha256=MODEL, adapter="",
        prompt_tokens=5, completion_tokens=7, unix_s=NOW, finish_reason="stop",
    )  # fmt: skip
    receipt = ReceiptKey(world.operator).sign(claims)
    kept = KeptEvidence(bundle, b"", at().address, at().is_local)
    return make_record(
        "mine", "node.example:443", receipt, claims, result,
        th=TH, salt=SALT, kept=kept, device=device,
    )  # fmt: skip


def test_the_commands_name_it(record, world, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("OVERSPILL_HOME", str(tmp_path))
    assert main(["receipts", "list"]) == 0
    capfd.readouterr()
    ReceiptStore(tmp_path / "state" / "receipts.sqlite").add(record)
    policy = tmp_path / "trust.toml"
    policy.write_text(world.policy_text())
    named = {
        "node": "node.example:443", "assurance": "SOFTWARE", "evidence_type": "pinned-operator",
        "release": "1.0", "model": "river", "model_sha256": MODEL.hex(), "prompt_tokens": 5,
        "completion_tokens": 7, "nkc_sha256": record_nkc(record), "measurement": "",
    }  # fmt: skip
    for command in (["list"], ["show", record.id], ["verify", record.id]):
        assert main(["receipts", *command, "--json"]) == 0
        found = json.loads(capfd.readouterr().out)
        facts = found[0] if command == ["list"] else found
        assert {name: facts[name] for name in named} == named
        assert facts["release_id"] == verdict_of(record).release_id
    assert main(["receipts", "verify", record.id, "--trust-policy", str(policy), "--json"]) == 0
    again = json.loads(capfd.readouterr().out)
    assert (again["verified"], again["evidence_verified"]) == (True, True)
    assert [step["ok"] for step in again["steps"]] == [True] * 9


def record_nkc(record) -> str:
    return verify_receipt(record).nkc_sha256.hex()


def verdict_of(record) -> Verdict:
    return Verdict.decode(record.verdict)


@pytest.mark.parametrize("name", ["release", "release_id", "measurement"])
def test_another_is_not_that_one(record, world, device, name):
    """Not even by the device's own hand: the kept evidence says otherwise."""
    verdict = replace(verdict_of(record), **{name: "ab" * 32}).encode()
    changed = replace(record, verdict=verdict)
    changed = replace(changed, device_signature=device.sign(signed_bytes(changed)))
    with pytest.raises(ReceiptInvalid, match=name.split("_")[0]):
        judged_again(changed, world.policy())


def judged_again(record, policy) -> None:
    verify_receipt(record)
    appraise_kept(record, policy)
