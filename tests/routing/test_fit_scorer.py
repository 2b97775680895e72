"""The fitting script: what it learns, what it leaves out, and that routing reads what it writes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from overspill.routing.complexity import Scorer

PAIR = ("small", "large")


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    """examples/routing/fit_scorer.py as a module."""
    path = repository / "examples/routing/fit_scorer.py"
    spec = importlib.util.spec_from_file_location("fit_scorer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model adds but does not multiply; the large one does both."""
    path = tmp_path_factory.mktemp("results") / "results.jsonl"
    rows = []
    for a in range(11, 41):
        rows.append({"prompt": f"What is {a} + {a + 7}?", "small_correct": 1, "large_correct": 1})
        rows.append({"prompt": f"What is {a} * {a + 7}?", "small_correct": 0, "large_correct": 1})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_the_gain_is_where_only_the_large_model_is_right(script: ModuleType, results: Path) -> None:
    rows = script.load(results, set())
    crossed = script.cross_fitted(rows, PAIR, 1.0, 1.0)
    gained = [gain for row, gain in zip(rows, crossed[:, 2], strict=True) if not row.labels[0]]
    kept = [gain for row, gain in zip(rows, crossed[:, 2], strict=True) if row.labels[0]]
    assert min(gained) > max(kept)
    report = script.report(rows, crossed)
    assert report["right_all_device"] == 0.5
    assert report["right_all_cloud"] == 1.0
    assert report["apgr"] == report["apgr_oracle"] > 0.7
    assert report["thresholds"]["0.5"] == {"right": 1.0, "device_share": 0.5}


def test_routing_reads_what_was_fitted(script: ModuleType, results: Path) -> None:
    scorer = script.fit(script.load(results, set()), PAIR, 1.0, 1.0)
    assert Scorer.from_json(script.to_json(scorer, {"why": "test"})) == scorer
    assert scorer.prior == (0.5, 1.0)


def test_what_the_scorer_is_shown_on_is_left_out_of_its_fit(
    script: ModuleType, results: Path, tmp_path: Path
) -> None:
    shown = tmp_path / "shown.json"
    prompts: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "What is  11 + 18?\n"}], "skill": "arithmetic"}
    ]
    shown.write_text(json.dumps(prompts), encoding="utf-8")
    assert len(script.load(results, set())) == 60
    assert len(script.load(results, script.excluded_texts([shown]))) == 59


def test_equal_prompts_fall_into_one_fold(script: ModuleType, tmp_path: Path) -> None:
    row = json.dumps({"prompt": "What is 1 + 1?", "small_correct": 1, "large_correct": 0})
    path = tmp_path / "twice.jsonl"
    path.write_text(f"{row}\n{row}\n", encoding="utf-8")
    first, second = script.load(path, set())
    assert first.fold == second.fold


def test_tool_calls_in_results_become_a_request(script: ModuleType) -> None:
    call = {"id": "c1", "function": {"name": "clock", "arguments": "{}"}}
    request = script.as_request(
        {
            "messages": [
                {"role": "user", "content": "What time is it?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "12:00", "tool_call_id": "c1"},
            ],
            "tools": [{"type": "function", "function": {"name": "clock"}}],
        }
    )
    assert request.tools[0].name == "clock"
    assert request.messages[1].tool_calls[0].id == "c1"
    assert script.user_text(request) == "What time is it?"


@pytest.fixture(scope="module")
def about(repository: Path) -> dict[str, Any]:
    """How the shipped scorer came to be, by its own record."""
    path = repository / "sdk/overspill/routing/scorer.json"
    assert path.stat().st_size <= 1_000_000
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["about"]
    return record


def test_the_shipped_scorer_was_fitted_without_the_demos_prompts(about: dict[str, Any]) -> None:
    assert "demo_prompts.json" in about["excluded"]


def test_the_shipped_scorer_beats_chance_and_length_on_prompts_it_has_not_seen(
    about: dict[str, Any],
) -> None:
    crossed = about["cross_fitted"]
    assert crossed["apgr"] > max(0.5, crossed["apgr_length"])
