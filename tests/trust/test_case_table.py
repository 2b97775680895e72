"""``CASES.md`` is the tally: all 65 cases, each with tests of its number that assert its reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from overspill import errors

TABLE = Path(__file__).parent / "CASES.md"
CASES = range(1, 66)
NUMBER = re.compile(r"(?:^|_)t(\d+)(?=_)")
SPAN = re.compile(r"_t(\d+)_to_t(\d+)_")


@dataclass(frozen=True)
class Case:
    number: int
    reasons: tuple[str, ...]
    tests: tuple[str, ...]


def cases() -> list[Case]:
    rows = [line.split("|")[1:-1] for line in TABLE.read_text().splitlines() if "::" in line]
    return [
        Case(
            int(number.strip().removeprefix("T")),
            tuple(re.findall("`(.+?)`", reasons)),
            tuple(re.findall("`(.+?)`", tests)),
        )
        for number, _, reasons, tests in rows
    ]


def numbers_of(name: str) -> set[int]:
    """The cases that a test's name carries: ``test_t41_to_t48_...`` stands for eight."""
    spans = [range(int(first), int(last) + 1) for first, last in SPAN.findall(name)]
    return {int(number) for number in NUMBER.findall(name)} | {n for span in spans for n in span}


def numbered_tests(folder: Path) -> Iterator[tuple[str, ast.AST]]:
    for file in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and re.match(
                r"test_t\d", node.name
            ):
                yield f"{file.relative_to(folder).as_posix()}::{node.name}", node


@pytest.fixture(scope="module")
def tests(repository) -> dict[str, ast.AST]:
    return dict(numbered_tests(repository / "tests"))


def said_by(node: ast.AST) -> set[str]:
    """The strings and names in a test, parameters included."""
    found = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
    return found | {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def test_all_65_cases_are_there_once():
    assert [case.number for case in cases()] == list(CASES)


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"T{case.number}")
def test_a_case_has_tests_that_assert_its_reasons(case, tests):
    assert case.tests
    assert case.reasons
    for test in case.tests:
        assert test in tests, f"{test} is not there"
        assert case.number in numbers_of(test.partition("::")[2])
    said = set().union(*(said_by(tests[test]) for test in case.tests))
    # A reason may come to a test by its helper's name: `signature` by `refused` in test_signing.
    assert set(case.reasons) <= said


def test_every_numbered_test_is_in_the_table(tests):
    listed = {(case.number, test) for case in cases() for test in case.tests}
    for test in tests:
        numbers = numbers_of(test.partition("::")[2])
        assert numbers, test
        assert any((number, test) in listed for number in numbers), f"{test} is not in CASES.md"


def test_every_reason_is_one_that_the_code_gives(repository):
    sources = "\n".join(
        file.read_text()
        for folder in ("sdk/overspill", "cloud/overspill_cloud")
        for file in (repository / folder).rglob("*.py")
    )
    for reason in {reason for case in cases() for reason in case.reasons}:
        # In one piece, or made of two as in f"{what}_expired".
        ends = (reason[at:] for at, char in enumerate(reason) if char == "_")
        is_made = reason in sources or any(f'}}{end}"' in sources for end in ends)
        assert is_made or hasattr(errors, reason), reason
