"""Output that cannot be written: a reader who has left, a full disk; never a traceback."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from overspill.cli.main import main

CATALOG = (sys.executable, "-m", "overspill.cli.main", "models", "catalog")
FULL = Path("/dev/full")


def test_a_reader_who_has_left_is_no_error(home):
    process = subprocess.Popen(CATALOG, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    with process.stderr as err:
        told = err.read()
    assert (process.wait(60), told) == (0, b"")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_full_disk_is_told_in_one_line(home, as_json):
    with FULL.open("wb") as full:
        done = subprocess.run(
            [*CATALOG, *as_json], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr == (
        "overspill: The output cannot be written: No space left on device. Make room.\n"
    )


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_letters_that_the_terminal_does_not_know_are_shown_in_escapes(home, monkeypatch, as_json):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["run", "שלום 👋", "--model", "echo", *as_json]) == 0
    shown = raw.getvalue().decode("ascii")
    if as_json:
        assert json.loads(shown)["text"] == "echo: שלום 👋"
    else:
        assert r"echo: \u05e9\u05dc\u05d5\u05dd" in shown
