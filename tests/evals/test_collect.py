"""`examples/routing/collect_results.py`: the family's own data, by the commands that users have."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from overspill.engines.registry import BROOK
from overspill.evals.data import Columns, load


def test_prompts_are_played_by_both_models_and_joined(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from examples.routing.collect_results import main

    monkeypatch.setenv("OVERSPILL_HOME", str(tmp_path / "home"))
    river = repository / "examples/family/models/river-q8_0.gguf"
    out = tmp_path / "out"
    line = ["collect", str(BROOK), str(river), "--per-cell", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    assert main() == 0
    found = load(out / "results.jsonl", Columns(confidence="confidence"))
    assert len(found) == 37
    assert found.requests is not None
    assert any(request.tools for request in found.requests)
    assert any(len(request.messages) > 1 for request in found.requests)
    assert found.outcomes.small.mean() < found.outcomes.large.mean()
    first = json.loads((out / "small.jsonl").read_text().splitlines()[0])
    assert len(first["signals"]["state"]) == 128
    assert main() == 0  # what is there is not asked again
