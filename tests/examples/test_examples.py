"""Every example in examples/ runs as its reader would run it, and does what it says it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {path.name for path in (ROOT / "examples").glob("*.py")}
WITH_A_WINDOW = {"desktop_app.py", "consent_dialog.py"}
SAYS = {
    "agent_chain.py": (
        r"It is sunny, 14 C in Oslo\.  \(2 calls",
        r"coldest first: Answer: 14, 21, 35",
        r"-- 7 calls, \d+ tokens left",
    ),
    "batch_job.py": (
        r"-- 4 answered now, 0 were answered already",
        r"-- 0 answered now, 4 were answered already",
        r"r-1  positive  device .*\nr-2  negative .*\nr-3  positive .*\nr-4  negative ",
    ),
    "custom_policy.py": (
        r"an ordinary report: consent_required; would leave: the conversation",
        r"with an address: consent_required.*\n(    .*\n)+    stage 2 redacted {'email': 1}",
        r"with a telephone number: floor; would leave: nothing",
        r"with a private term: floor; would leave: nothing",
    ),
    "first_answer.py": (r"Answer: 14, 21, 35", r"-- brook on the device, 0 bytes left"),
    "openai_client.py": (r"-- brook",),
    "own_cloud.py": (
        r"-- brook: device, easy_enough; 0 bytes left",
        r"624\n-- river: cloud, escalate; \d{3,} bytes left\n-- receipt verified for river",
        r"-- river: cloud, spill; \d{3,} bytes left\n-- receipt verified for river",
    ),
    "plan_and_privacy.py": (r"leaves: nothing", r"stage 2: personal_data {'email': 1}"),
    "streaming.py": (r"-- left after \d+ tokens",),
}


def run(*command: str | Path, home: Path, **environment: str) -> str:
    """What a command printed; it has to succeed, and without a traceback."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=home,
        env={**os.environ, "OVERSPILL_HOME": str(home / "home"), **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_every_example_is_run_here_and_named_in_the_readme():
    readme = (ROOT / "examples" / "README.md").read_text("utf-8")
    assert {*SAYS, *WITH_A_WINDOW, "test_notes_app.py"} == EXAMPLES
    assert set(re.findall(r"\]\((\w+\.py)\)", readme)) == EXAMPLES


@pytest.mark.parametrize("name", SAYS)
def test_the_example_says_what_it_shows(name, tmp_path):
    said = run(sys.executable, ROOT / "examples" / name, home=tmp_path)
    for pattern in SAYS[name]:
        assert re.search(pattern, said), said


def test_the_tests_of_an_app_pass(tmp_path):
    suite = ROOT / "examples" / "test_notes_app.py"
    said = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path),
        *("-c", os.devnull, suite),
        home=tmp_path,
    )
    assert "5 passed" in said


@pytest.fixture
def display(need_program: Callable[[str, str], str]) -> tuple[str, ...]:
    """What goes before a command that opens windows: a screen that nobody sees."""
    pytest.importorskip("tkinter", reason="this Python was built without tkinter")
    need_program("Xvfb", "xvfb")
    need_program("xauth", "xauth")
    return (need_program("xvfb-run", "xvfb"), "-a")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a screen is always there")
@pytest.mark.parametrize("name", sorted(WITH_A_WINDOW))
def test_without_a_screen_a_window_says_so_in_one_line(name, tmp_path):
    pytest.importorskip("tkinter", reason="this Python was built without tkinter")
    environ = {**os.environ, "OVERSPILL_HOME": str(tmp_path)}
    environ.pop("DISPLAY", None)
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("No window can be opened: ")


def with_a_window(display: tuple[str, ...], action: str, home: Path) -> list[str]:
    driver = Path(__file__).parent / "with_a_window.py"
    return run(*display, sys.executable, driver, action, home=home).splitlines()


def test_the_desktop_app_answers_says_where_and_cancels(display, tmp_path):
    answer = "Answer: 14, 21, 35 | brook on the device; 0 bytes left"
    assert with_a_window(display, "desktop", tmp_path) == [answer, answer, " | Cancelled."]


def test_the_dialog_is_shown_for_each_request_and_what_is_not_granted_stays(display, tmp_path):
    plan, sent, again, kept = with_a_window(display, "consent", tmp_path)
    assert plan == again
    assert plan.startswith("Only large at maker.example can answer this. What would leave: the con")
    assert re.fullmatch(r"I have read (\d+) bytes\. -- third_party, \1 bytes left", sent)
    assert kept.startswith("ConsentRequired: ")
