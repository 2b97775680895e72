"""The replay: the same seed is the same trace, and the upgrade path only grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overspill.cli.main import main
from overspill.evals.traces import TraceOptions, make_trace
from overspill.evals.traces_report import ReportOptions, report


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return report(ReportOptions(TraceOptions(jobs=150, chains=10), seeds=1))


def test_a_trace_is_its_seed() -> None:
    options = TraceOptions(jobs=30, chains=3, seed=7)
    assert make_trace(options) == make_trace(options)
    assert make_trace(options) != make_trace(TraceOptions(jobs=30, chains=3, seed=8))
    assert all(6 <= len(chain) <= 8 for chain in make_trace(options).chains[:-1])


def test_a_slower_device_sends_more_and_answers_no_worse(found: dict[str, Any]) -> None:
    shares = [row["cloud_share"] for row in found["upgrade"]]
    rights = [row["quality"] for row in found["upgrade"]]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    assert min(rights) == rights[0]


def test_a_new_model_is_taken_up_from_its_card(found: dict[str, Any]) -> None:
    assert found["new_model"]["after"] > found["new_model"]["without"]


def test_chains_end_within_their_budget(found: dict[str, Any]) -> None:
    assert found["rules"]["policy"]["chains_in_time"] == 1.0


def test_every_figure_says_what_was_asked(found: dict[str, Any]) -> None:
    for figure in found["figures"]:
        assert figure["name"].startswith("traces.")
        assert (figure["ok"] is None) == (figure["asked"] is None or figure["value"] is None)
        assert figure["value"] is not None or figure["reason"]


def test_the_command_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "traces.json"
    arguments = ["--jobs", "20", "--chains", "1", "--seeds", "1", "--json", str(out)]
    assert main(["eval", "traces", *arguments]) == 0
    assert json.loads(out.read_text())["jobs"] == 20
    assert "traces.missed.ratio" in capsys.readouterr().out
