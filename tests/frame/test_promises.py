"""The README's promises are the first lines of tests, and its tables are made of what there is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from overspill.routing.policy import DEFAULT_DETECTORS
from overspill.types.chat import Privacy

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.search(
    r"^## Privacy.*?\n(.*?)^## ", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
).group(1)
PROMISES = [
    " ".join(item.split()) for item in re.findall(r"^- (.*?)(?=\n- |\n\n)", SECTION, re.S | re.M)
]


def first_lines(file: Path) -> list[str]:
    """What each test in a file says that it shows."""
    functions = ast.walk(ast.parse(file.read_text("utf-8")))
    return [
        (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
        for node in functions
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    ]


def test_there_are_promises():
    assert len(PROMISES) >= 12


@pytest.mark.parametrize("promise", PROMISES)
def test_a_test_shows_what_is_promised(promise):
    words, link = re.fullmatch(r"(.*\.) \(\[test\]\((tests/[\w/]+\.py)\)\)", promise).groups()
    assert first_lines(ROOT / link).count(words) == 1


def test_what_raises_the_floor_is_what_the_readme_says():
    at = " ".join(SECTION.split())
    said = re.search(
        r"((?:\S+ ){4}\S+) raise the floor of a request to `attested`; (.*?) raise it", at
    )
    names = {
        "email": "E-mail addresses",
        "phone": "phone numbers",
        "card": "card numbers (Luhn)",
        "iban": "IBANs",
        "api_key": "API keys",
        "listed": "private_terms",
    }
    assert names.keys() == DEFAULT_DETECTORS.keys()
    for kind, floor in DEFAULT_DETECTORS.items():
        assert names[kind] in said.group(1 if floor is Privacy.ATTESTED else 2)


def test_the_tables_of_verbs_are_what_the_commands_say():
    script = ROOT / "scripts" / "help_texts.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
