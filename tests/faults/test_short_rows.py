"""Four rows of the matrix in their short forms, and the checker that all rows believe. The other
rows: `make soak ARGS=--short`."""

from __future__ import annotations

import pytest

pytest.importorskip("sqlalchemy")

from faults import rows_fleet, rows_state
from faults.history import History
from faults.rows_load import StampCheck
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


def test_a_lost_token_and_a_doubled_one_are_two_and_not_none():
    def wrong(ids, stamps):
        check = StampCheck()
        check.take(stamps, ids)
        return check.wrong(4)

    assert wrong([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4]) == 0
    assert (
        wrong([0, 1, 1, 3], [0.1, 0.2, 0.2, 0.4]) == 3
    )  # doubled, by number and by time, and lost
    assert wrong([0, 2, 1, 3], [0.1, 0.3, 0.2, 0.4]) > 0
    assert wrong([0, 1, 2], [0.1, 0.2, 0.3]) == 1
    assert wrong([0, 1, 2, 3], [0.1, 0.2, 0.3]) == 1


def test_who_waits_for_the_first_piece_or_the_end_is_silent_too():
    history = History("abc", ["a", "b"], [5.0, 6.0], begun_s=1.0, ended_s=6.5)
    assert history.longest_silence_s == 4.0
    assert rows_fleet.resumes([history]) == [0.0]  # none moved
    moved = History("abc", begun_s=1.0, ended_s=4.0, moves=("a -> b",))
    assert rows_fleet.resumes([history, moved]) == [3.0]


async def test_no_message_is_accepted_twice_and_no_valid_one_refused(tmp_path):
    assert await rows_state.r9(SHORT, tmp_path) == {"accepted_twice": 0, "refused": 0}


async def test_replicas_that_are_killed_leave_no_drift(tmp_path):
    assert await rows_state.r10(SHORT, tmp_path) == {"held": 0, "drift": 0}
