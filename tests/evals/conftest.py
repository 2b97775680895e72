"""What the tests of evaluation share: results of two models that are easy to tell apart."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

Row = dict[str, object]


@pytest.fixture(scope="session")
def rows() -> list[Row]:
    """240 prompts: the small model adds, looks up and sorts; only the large one multiplies."""
    found: list[Row] = []
    for a in range(11, 71):
        found += [
            {"subject": "sums", "prompt": f"What is {a} plus {a * 7 % 97}?", "small": 1},
            {"subject": "sums", "prompt": f"Multiply {a} by {a * 5 % 89} please.", "small": 0},
            {"subject": "words", "prompt": f"Name {a} cities that lie by a river.", "small": 1},
            {"subject": "words", "prompt": f"Which poem has {a} lines and a refrain?", "small": 0},
        ]
    return [
        {**row, "small_correct": row["small"], "large_correct": 1, "confidence": 0.5 + 0.01 * i}
        for i, row in enumerate(found)
    ]


@pytest.fixture
def results_csv(tmp_path: Path, rows: list[Row]) -> Callable[..., Path]:
    """``results_csv(rows)`` writes them to a file."""

    def write(wanted: list[Row] = rows, name: str = "results.csv") -> Path:
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, fieldnames=list(wanted[0]))
            writer.writeheader()
            writer.writerows(wanted)
        return path

    return write


@pytest.fixture
def prompts_file(tmp_path: Path) -> Callable[..., Path]:
    """``prompts_file(count)`` writes so many prompts, of which every other one has an answer."""

    def write(count: int, name: str = "prompts.jsonl") -> Path:
        path = tmp_path / name
        with path.open("w", encoding="utf-8") as out:
            for n in range(count):
                row: dict[str, object] = {"prompt": f"Say the number {n}.", "skill": "saying"}
                if n % 2 == 0:
                    row |= {"expected": str(n), "grade": "number"}
                out.write(json.dumps(row) + "\n")
        return path

    return write
