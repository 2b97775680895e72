"""The program that runs the matrix: a row that fails is a figure without a value, however."""

from __future__ import annotations

import json
import sys
from contextlib import suppress

import psutil
import pytest

pytest.importorskip("sqlalchemy")

from faults import soak
from faults.scale import CannotRun, NotInstalled, Scale, tell

ABORTS = "import os; os.abort()"
HANGS = "import time; print('x', flush=True); time.sleep(600)"
LEAVES = """
import json, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
figures = [{"name": n, "value": 0, "unit": ""} for n in ("soak.r8.failed", "soak.r8.violations")]
figures.append({"name": "soak.r8.bad_exits", "value": None, "reason": "why not"})
open(sys.argv[1], "w").write(json.dumps({"figures": figures}))
open(sys.argv[2], "w").write(str(child.pid))
"""


@pytest.mark.parametrize(
    ("program", "limit_s", "why"), [(ABORTS, 60, "ended with -6"), (HANGS, 0.5, "not over")]
)
def test_a_row_that_aborts_or_hangs_says_so(program, limit_s, why, tmp_path):
    figures = soak.run_apart("R8", [sys.executable, "-c", program], tmp_path / "none", limit_s)
    assert [figure.value for figure in figures] == [None] * 3
    assert all("the row failed" in figure.reason and why in figure.reason for figure in figures)


def test_a_rows_figures_are_read_and_what_it_left_running_is_ended(tmp_path):
    told, child = tmp_path / "told", tmp_path / "child"
    command = [sys.executable, "-c", LEAVES, str(told), str(child)]
    figures = soak.run_apart("R8", command, told, 60)
    assert [figure.value for figure in figures] == [0, 0, None]
    assert figures[2].reason == "why not"
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(child.read_text())).wait(30)


@pytest.mark.parametrize(
    ("reason", "whole", "short"),
    [
        (f"{soak.FAILED}: it hung", True, True),
        ("this machine needs more than 5 s for it", True, False),
        (f"{soak.NOT_HERE}: ray is not installed", False, False),
        (soak.NOT_ASKED, False, False),
    ],
)
def test_a_figure_that_is_asked_and_not_there_fails_a_whole_run(reason, whole, short):
    figure = soak.FIGURES["R2.violations"].missing(reason)
    assert soak._fails(figure, short=False) is whole
    assert soak._fails(figure, short=True) is short


@pytest.mark.parametrize(("trouble", "fails"), [(CannotRun, True), (NotInstalled, False)])
def test_a_row_that_gives_up_fails_unless_a_piece_is_missing(trouble, fails, monkeypatch):
    async def gives_up(scale, folder):
        raise trouble("why")

    monkeypatch.setitem(soak.ROWS, "R2", gives_up)
    figures = soak.run_row("R2", Scale(is_short=False))
    assert figures
    assert all("why" in figure.reason for figure in figures)
    assert all(soak._fails(figure, short=False) is fails for figure in figures)


def test_trouble_is_told_five_times_and_counted(capsys):
    tell("R2", [f"stream {number}" for number in range(1000)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [*(f"R2: stream {n}" for n in range(5)), "R2: and so on, 1000 in all"]


def test_the_file_is_there_before_the_last_row(tmp_path, monkeypatch):
    seen = []
    path = tmp_path / "soak.json"

    def run(row, options, *, alone):
        seen.append(json.loads(path.read_text())["seconds"].keys() if path.exists() else ())
        return [spec.measured(spec.asked.value) for spec in soak.specs_of(row).values()]

    monkeypatch.setattr(soak, "_run", run)
    monkeypatch.setattr(sys, "argv", ["soak.py", "--only", "R8,R3", "--json", str(path)])
    assert soak.main() == 0
    assert [list(rows) for rows in seen] == [[], ["R3"]]
    figures = {one["name"]: one for one in json.loads(path.read_text())["figures"]}
    assert figures["soak.r8.failed"]["value"] == 0
    assert figures["soak.r1.lost"]["reason"] == "not asked for"
