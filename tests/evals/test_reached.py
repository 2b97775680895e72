"""The figures that the READMEs tell are those that were measured, and can be measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overspill.evals.traces import TraceOptions, trace_cards
from overspill.evals.traces_replay import Replay
from overspill.evals.traces_report import judged_trace
from overspill.evals.traces_rules import ByPolicy, Static


@pytest.fixture(scope="module")
def results(repository: Path) -> dict[str, Any]:
    """``examples/routing/results.json``."""
    found: dict[str, Any] = json.loads((repository / "examples/routing/results.json").read_text())
    return found


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    """The README of the evaluation, in one line."""
    text = (repository / "sdk/overspill/evals/README.md").read_text(encoding="utf-8")
    return " ".join(text.split())


def test_the_traces_that_are_told_are_those_that_were_replayed(
    results: dict[str, Any], readme: str
) -> None:
    told = {
        "policy": "the built-in policy",
        "policy.hedge": "the same with hedges, at most 5%",
        "policy.threshold.0": "the same with a threshold of 0",
        "device": "always device",
        "cloud": "always cloud",
        "length.30": "by length, over 30 tokens",
        "gain.0.2": "gain over a fixed 0.2",
    }
    for name, rule in told.items():
        row = results["traces"]["rules"][name]
        cells = (
            f"{row['quality']:.3f}",
            f"{row['missed']:.1%}",
            f"{row['right_in_time']:.1%}",
            f"{row['cloud_share']:.0%}",
            f"{row['cost_per_1000']:.3f}" if row["cost_per_1000"] else "0",
            f"{row['joules']:.0f}",
        )
        assert f"| {rule} | {' | '.join(cells)} |" in readme
    assert f"| {results['traces']['missed_ratio']:.3f} of it" in readme
    for name, share in results["traces"]["chains_completed"].items():
        assert f"{share:.0%} of the chains" in readme or f"always {name} {share:.0%}" in readme


def test_misses_are_half_of_the_best_static_rules_and_are_counted_again(
    results: dict[str, Any], repository: Path
) -> None:
    rules, again = results["traces"]["rules"], results["traces"]["again"]
    assert rules["policy"]["missed"] <= 0.5 * rules["length.30"]["missed"]
    cards = trace_cards()
    options = TraceOptions(jobs=again["jobs"], chains=again["chains"], seed=again["seed"])
    trace = judged_trace(options, cards)
    for rule in (ByPolicy(), Static("length.30", max_tokens=30.0)):
        late = [one.late for one in Replay(trace, rule, cards).run().results]
        assert sum(late) / len(late) == pytest.approx(again["missed"][rule.name], abs=0.005)
    main = " ".join((repository / "README.md").read_text(encoding="utf-8").split())
    policy, static = rules["policy"]["missed"], rules["length.30"]["missed"]
    assert f"the policy missed {policy:.1%} of deadlines" in main
    assert f"the best static rule that answers as well {static:.1%}" in main


def test_the_guarantee_is_counted_again(
    results: dict[str, Any], readme: str, repository: Path
) -> None:
    from examples.routing.judge_splits import guarantee, order, read

    judged = read(repository / "examples/routing/judged.csv")
    found = {**order(judged), **guarantee(judged)}
    told = results["family"]
    assert len(judged.gain) == told["n"]
    for name in found.keys() & told.keys():
        assert found[name] == pytest.approx(told[name], abs=1e-4), name
    assert told["broken_on_the_rest"] <= 0.1
    assert told["share_of_allowed"] >= 0.9
    for words in (
        f"broken in {told['broken_on_the_rest']:.1%} as counted on the rest of each split",
        f"over the truly allowed threshold in {told['over_the_allowed']:.1%}",
        f"at {told['share_of_allowed']:.1%} of the share",
        f"a tuned threshold: {told['broken_by_a_tuned_threshold']:.1%}",
        f"{told['points_under_at_half']:.1f} by the prompt alone",
    ):
        assert words in readme, words


def test_a_file_of_judgements_is_made_from_two_files_of_results(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    from examples.routing.judge_splits import judge, order, read, write

    paths = [tmp_path / "known.jsonl", tmp_path / "new.jsonl"]
    for path, part in zip(paths, (rows[::2], rows), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    judged = judge(*paths)
    assert 0 < len(judged.gain) <= len(rows) // 2  # what was learned from is not judged
    write(judged, tmp_path / "judged.csv")
    again = read(tmp_path / "judged.csv")
    assert again.gain == pytest.approx(judged.gain)
    assert order(again) == order(judged)
