"""A clock that is far off: one typed refusal, at the step that read it, whatever it says."""

from __future__ import annotations

import pytest

from overspill.errors import DeviceRejected, EvidenceRejected
from overspill.sealing.signing import RequestSignature, check_clock
from overspill.trust.raw import RawContext, appraise_raw
from overspill.trust.verifier import verify

EARLY = (0, 1, -1, -(2**31), -(2**63), -(2**80))
LATE = (2**31 + 10**9, 2**32, 253_402_300_800, 2**63, 2**80, 1e300)


@pytest.mark.parametrize("now", EARLY)
def test_a_clock_that_was_never_set(node, at, now):
    with pytest.raises(EvidenceRejected) as caught:
        verify(node.bundle(), at(now_unix=now), node.policy)
    assert (caught.value.reason, caught.value.step) == ("nkc_not_yet_valid", "4")


@pytest.mark.parametrize("now", LATE)
def test_a_clock_that_runs_ahead(node, at, now):
    with pytest.raises(EvidenceRejected) as caught:
        verify(node.bundle(), at(now_unix=now), node.policy)
    assert (caught.value.reason, caught.value.step) == ("nkc_expired", "4")


@pytest.mark.parametrize("now", [*EARLY, *LATE[:-1]])
def test_raw_evidence_at_any_time_gets_a_verdict(shared_data, now):
    folder = shared_data / "vectors/sevsnp/virtee"
    files = [(folder / name).read_bytes() for name in ("report_milan.hex", "vcek_milan.der")]
    found = appraise_raw("snp", files, RawContext(now), None)
    assert found.verdict == "rejected"
    early = now in EARLY
    reason = "certificate_not_yet_valid" if early else "certificate_expired"
    assert (found.rejection.reason, found.rejection.step) == (reason, "8.3")


@pytest.mark.parametrize("now_ms", [0, -(2**63), 2**63, 2**80])
def test_a_nodes_clock_far_from_the_devices(now_ms):
    signature = RequestSignature(bytes(16), 1_800_000_000_000, bytes(32), 0, b"", b"")
    with pytest.raises(DeviceRejected) as caught:
        check_clock(signature, now_ms)
    assert caught.value.reason == "clock"
