"""Four rows of the matrix in their short forms, and the checker that all rows believe. The other
rows: `make soak ARGS=--short`."""

from __future__ import annotations

import pytest

pytest.importorskip("sqlalchemy")

from faults import rows_fleet, rows_state
from faults.history import History
from faults.scale import Scale

from overspill.errors import StreamBroken

pytestmark = pytest.mark.anyio
SHORT = Scale(is_short=True)


async def test_a_rolling_upgrade_fails_no_stream(tmp_path):
    measured = await rows_fleet.r8(SHORT, tmp_path)
    assert measured == {"failed": 0, "violations": 0, "bad_exits": 0}


async def test_certificates_rotate_under_load_and_a_revoked_device_is_refused(tmp_path):
    measured = await rows_fleet.r13(SHORT, tmp_path)
    assert measured["failed"] == 0
    assert measured["refused_s"] < float("inf")


def test_the_checker_sees_what_is_lost_doubled_or_silent():
    whole = History("abc", ["a", "b", "c"], finish=object())
    assert whole.is_complete
    assert not whole.violation
    assert "differs" in History("abc", ["a", "c"]).violation
    assert "differs" in History("abc", ["a", "a"]).violation
    assert "confirmed" in History("abc", ["a"], finish=object()).violation
    assert "neither" in History("abc", ["a"]).violation
    assert not History("abc", ["a"], error=StreamBroken("x", partial="a")).violation
    assert "partial" in History("abc", ["a"], error=StreamBroken("x")).violation


async def test_no_message_is_accepted_twice_and_no_valid_one_refused(tmp_path):
    assert await rows_state.r9(SHORT, tmp_path) == {"accepted_twice": 0, "refused": 0}


async def test_replicas_that_are_killed_leave_no_drift(tmp_path):
    assert await rows_state.r10(SHORT, tmp_path) == {"held": 0, "drift": 0}
