"""Reading results: every form of file and label, and errors that name file, row and column."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from overspill.errors import UsageError
from overspill.evals.data import Columns, Results, load

NESTED = Columns(small="scores:tiny-1.5:q4", large="scores:big", group="task")


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_defaults_read_what_the_contract_names(results_csv: Callable[..., Path]) -> None:
    found = load(results_csv(), Columns(confidence="confidence"))
    assert len(found) == 240
    assert found.groups is not None
    assert found.groups[:3] == ("sums", "sums", "words")
    assert found.outcomes.small[:2].tolist() == [1, 0]
    assert found.confidence is not None
    assert found.confidence[1] == pytest.approx(0.51)


def test_only_the_first_colon_splits(tmp_path: Path) -> None:
    scores = {"tiny-1.5:q4": 0.25, "big": True}
    path = jsonl(tmp_path / "a.jsonl", {"task": "t", "prompt": "hi\u2028you", "scores": scores})
    found = load(path, NESTED)
    assert (found.outcomes.small[0], found.outcomes.large[0]) == (0.25, 1.0)
    assert found.prompts == ("hi\u2028you",)


def test_an_object_may_stand_in_a_csv_cell_and_a_file_be_zipped(tmp_path: Path) -> None:
    text = 'task,prompt,scores\nt,"a\nb","{""tiny-1.5:q4"": 0, ""big"": 1}"\n'
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    found = load(path, NESTED)
    assert found.prompts == ("a\nb",)
    assert found.outcomes.gain.tolist() == [1.0]


@pytest.mark.parametrize(
    ("label", "value"),
    [(True, 1), (False, 0), ("True", 1), ("0", 0), (0.25, 0.25), ("1.0", 1), (1, 1)],
)
def test_labels(tmp_path: Path, label: object, value: float) -> None:
    row = {"prompt": "x", "small_correct": label, "large_correct": 1}
    assert load(jsonl(tmp_path / "a.jsonl", row), Columns()).outcomes.small[0] == value


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x", "small_correct": 1}, "large_correct"),
        ({"prompt": "x", "small_correct": None, "large_correct": 1}, "missing"),
        ({"prompt": "x", "small_correct": "", "large_correct": 1}, "missing"),
        ({"prompt": "x", "small_correct": 2, "large_correct": 1}, "no label"),
        ({"prompt": "x", "small_correct": "good", "large_correct": 1}, "no number"),
        ({"prompt": "x", "small_correct": "nan", "large_correct": 1}, "finite"),
        ({"prompt": "  ", "small_correct": 1, "large_correct": 1}, "not empty"),
        ({"prompt": None, "small_correct": 1, "large_correct": 1}, "not empty"),
        ({"small_correct": 1, "large_correct": 1}, "prompt"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, said: str) -> None:
    good = {"prompt": "x", "small_correct": 1, "large_correct": 1}
    with pytest.raises(UsageError, match=said) as error:
        load(jsonl(tmp_path / "a.jsonl", good, row), Columns())
    assert "row 2" in error.value.message


def test_a_lone_surrogate_does_not_end_an_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x \\ud800", "small_correct": 1, "large_correct": 1}\n')
    assert load(path, Columns()).prompts == ("x ?",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "no rows"),
        ("a.txt", b"x", "neither CSV nor JSONL"),
        ("a.jsonl", b"{\n", "line 1 is no JSON"),
        pytest.param("a.jsonl", b"[" * 100_000 + b"\n", "nested too deeply", id="deep"),
        ("a.jsonl", b"[1]\n", "no JSON object"),
        ("a.csv", b"prompt\n\xff\n", "not UTF-8"),
        ("a.csv.gz", b"prompt", "no gzip"),
        ("a.csv.gz", gzip.compress(b"prompt" * 99, mtime=0)[:-9], "cut short"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said) as error:
        load(path, Columns())
    assert name in error.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "none.csv", Columns())


def test_rows_can_be_taken(results_csv: Callable[..., Path]) -> None:
    found: Results = load(results_csv(), Columns(confidence="confidence")).take([3, 1])
    assert found.prompts[1].startswith("Multiply 11")
    assert found.groups == ("words", "sums")
