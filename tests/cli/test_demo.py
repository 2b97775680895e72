"""`overspill demo`: the main job on real parts, and nothing in its table that was not measured."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from overspill.cli import demo

ROW = {
    "prompt",
    "skill",
    "level",
    "route",
    "reason",
    "model",
    "ttft_s",
    "tokens_per_s",
    "bytes_sent",
    "receipt_verified",
    "answer",
    "expected",
    "correct",
}


@pytest.fixture(scope="module")
def played(repository, tmp_path_factory):
    """The whole demo, run once as a user runs it: (its JSON, what it printed)."""
    out = tmp_path_factory.mktemp("demo") / "demo.json"
    done = subprocess.run(
        [sys.executable, "-m", "overspill.cli.main", "demo", "--json", str(out)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_a_dozen_prompts_or_more_of_all_skills_and_levels(played):
    rows = played[0]["requests"]
    assert len(rows) >= 12
    assert {row["level"] for row in rows} == {"easy", "medium", "hard"}
    assert len({row["skill"] for row in rows}) >= 10
    assert all(set(row) == ROW for row in rows)


def test_some_stay_some_spill_and_each_says_why(played):
    rows = played[0]["requests"]
    assert {row["route"] for row in rows} == {"device", "cloud"}
    assert all(row["reason"] for row in rows)


def test_only_what_spilled_left_the_device_and_came_back_with_a_receipt(played):
    for row in played[0]["requests"]:
        cloud = row["route"] == "cloud"
        assert (row["bytes_sent"] > 0) == cloud
        assert row["receipt_verified"] is (True if cloud else None)
        assert row["model"] == ("river" if cloud else "brook")
        assert row["tokens_per_s"] is None or row["tokens_per_s"] > 0


def test_private_prompts_stay(played):
    rows = played[0]["requests"][-len(demo.PRIVATE) :]
    assert Counter(row["route"] for row in rows) == {"device": len(demo.PRIVATE)}
    assert {row["reason"] for row in rows} == {"privacy"}


def test_the_sum_is_the_sum_of_the_rows(played):
    result, printed = played
    summary, rows = result["summary"], result["requests"]
    assert summary["right"] == sum(row["correct"] is True for row in rows)
    kept = sum(row["route"] == "device" for row in rows)
    assert summary["device_share"] == pytest.approx(kept / len(rows), abs=1e-4)
    assert summary["assurance"] == "NONE"
    assert f"{summary['right_all_cloud']} all in the cloud" in printed
    assert "REFUSED" not in printed
