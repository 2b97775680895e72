"""`overspill eval routing` as a whole: the contract's JSON, and that it learns, not peeks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from overspill.cli.main import main
from overspill.evals.fit import Design, FitOptions, Task, features_of, fit
from overspill.evals.predict import predict
from overspill.routing.complexity import Scorer
from overspill.types.card import ModelCard
from overspill.types.route import Route

CARDS = {
    route: ModelCard(name, 1024, "x")
    for route, name in ((Route.DEVICE, "small"), (Route.CLOUD, "large"))
}
RANKED = {"apgr", "cpt50", "cpt80", "cpt95", "pgr20"}


@pytest.fixture
def report_of(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the command and read its report."""

    def run(data: Path, *options: str) -> dict[str, Any]:
        out = tmp_path / "out" / "report.json"
        arguments = ["eval", "routing", "--data", str(data), "--json", str(out), *options]
        assert main(arguments) == 0
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found

    return run


def test_the_report_has_the_contracts_shape(
    results_csv: Callable[..., Path], report_of: Callable[..., dict[str, Any]]
) -> None:
    report = report_of(results_csv(), "--group", "small")
    assert (report["n"], report["q_small"], report["q_large"]) == (240, 0.5, 1.0)
    assert {*RANKED, "ci", "ece", "auc", "flips", "accuracy_at"} <= set(report["router"])
    assert set(report["router"]["ci"]) == RANKED
    fixed = {"always_device": 0.5, "always_cloud": 1.0, "larger_device": None}
    orders = {"random", "length", "domain_prior", "confidence", "oracle"}
    assert orders | fixed.keys() == set(report["baselines"])
    assert {name: report["baselines"][name]["quality"] for name in fixed} == fixed
    assert "larger device" in report["baselines"]["larger_device"]["reason"]
    assert all(set(baseline) >= RANKED for baseline in report["baselines"].values())
    assert report["baselines"]["random"]["apgr"] == pytest.approx(0.5)
    assert report["baselines"]["confidence"]["apgr"] is None
    assert "confidence" in report["baselines"]["confidence"]["reason"]
    assert report["decision_us"]["p50"] <= report["decision_us"]["p99"]
    assert all(f["value"] is not None or f["reason"] for f in report["figures"])


def test_it_learns_who_gains_and_writes_to_stdout(
    results_csv: Callable[..., Path],
    rows: list[dict[str, object]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = results_csv([{k: v for k, v in row.items() if k != "subject"} for row in rows])
    assert main(["eval", "routing", "--data", str(data), "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["router"]["apgr"] > 0.7
    assert report["router"]["cpt50"] < 0.3
    assert report["cross_fitted"] == "near-duplicate cluster"


def test_labels_without_a_pattern_score_at_random(
    results_csv: Callable[..., Path],
    rows: list[dict[str, object]],
    report_of: Callable[..., dict[str, Any]],
) -> None:
    coin = np.random.default_rng(5).integers(0, 2, len(rows))
    report = report_of(
        results_csv([{**r, "small_correct": int(c)} for r, c in zip(rows, coin, strict=True)]),
        "--group",
        "subject",
    )
    low, high = report["router"]["ci"]["apgr"]
    assert low < 0.5 < high + 0.1


def test_a_training_file_is_learned_from_less_what_the_data_repeat(
    results_csv: Callable[..., Path],
    rows: list[dict[str, object]],
    report_of: Callable[..., dict[str, Any]],
) -> None:
    train, data = results_csv(rows[:200], "train.csv"), results_csv(rows[190:], "data.csv")
    report = report_of(data, "--train", str(train))
    assert report["cross_fitted"].startswith("training file, less ")
    assert report["labels_used"] <= 190
    assert report["router"]["apgr"] > 0.7
    assert report["baselines"]["domain_prior"]["apgr"] is not None


def test_no_gap_leaves_the_metrics_null_with_the_reason(
    results_csv: Callable[..., Path],
    rows: list[dict[str, object]],
    report_of: Callable[..., dict[str, Any]],
) -> None:
    report = report_of(results_csv([{**r, "small_correct": 1} for r in rows]))
    assert {report["router"][name] for name in RANKED} == {None}
    assert "undefined" in report["router"]["reason"]
    assert report["baselines"]["oracle"]["apgr"] is None


def test_too_few_rows_and_one_group_are_told(
    results_csv: Callable[..., Path],
    rows: list[dict[str, object]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = results_csv(rows[:9], "few.csv")
    assert main(["eval", "routing", "--data", str(few)]) == 2
    assert "too few" in capsys.readouterr().err
    one = results_csv([{**row, "subject": "all"} for row in rows], "one.csv")
    assert main(["eval", "routing", "--data", str(one)]) == 2
    assert "one group" in capsys.readouterr().err


@pytest.fixture(scope="module")
def fitted(rows: list[dict[str, object]]) -> tuple[Scorer, Design, list[Any]]:
    features = features_of([str(row["prompt"]) for row in rows], 1024)
    design = Design.of(features)
    labels = np.array([[row["small_correct"], row["large_correct"]] for row in rows], dtype=float)
    groups = ["easy" if row["small_correct"] else "hard" for row in rows]
    (scorer,) = fit(Task(design, labels, groups), FitOptions(buckets=1024))
    return scorer, design, features


def test_many_are_scored_as_routing_scores_one(fitted: tuple[Scorer, Design, list[Any]]) -> None:
    scorer, design, features = fitted
    found = predict(scorer, design, features)
    for row in range(0, len(features), 17):
        one = scorer.score(features[row], CARDS)
        assert one.gain == pytest.approx(found.gain[row], abs=1e-6)
        assert one.contributions["domain_posterior"] != 0
        assert sum(one.contributions.values()) == one.gain


def test_a_prompt_in_unknown_words_falls_back_towards_the_prior(
    fitted: tuple[Scorer, Design, list[Any]],
) -> None:
    scorer = fitted[0]
    known, unknown = features_of(["What is 14 plus 9?", "Quid vesperi gerendum censes"], 1024)
    assert scorer.familiarity(known) > 0.9
    assert scorer.familiarity(unknown) < 0.3


def test_a_ridge_gives_way_only_where_another_is_far_likelier(
    rows: list[dict[str, object]],
) -> None:
    design = Design.of(features_of([str(row["prompt"]) for row in rows], 1024))
    clear = np.array([[row["small_correct"], row["large_correct"]] for row in rows], dtype=float)
    noise = np.random.default_rng(1).integers(0, 2, clear.shape).astype(float)

    def heads(labels: np.ndarray, *ridges: float) -> object:
        return fit(Task(design, labels), FitOptions(buckets=1024, ridges=ridges))[0].ngrams

    assert heads(clear, 20.0, 2.0) == heads(clear, 2.0) != heads(clear, 20.0)
    assert heads(noise, 20.0, 2.0) == heads(noise, 20.0) != heads(noise, 2.0)
