"""make, the environment script and the watch over skips, run as a newcomer or CI runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Find = Callable[[str, str], str]


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with some of the environment replaced."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("target", "behind"),
    [
        ("demo", "overspill demo"),
        ("test", "pytest -n auto --maxprocesses 4 --dist loadfile"),
        ("bench", "overspill bench --out build/bench"),
        ("soak", "tests/faults/soak.py"),
    ],
)
def test_make_passes_arguments_on(
    repository: Path, need_program: Find, target: str, behind: str
) -> None:
    done = run(need_program("make", "make"), "-n", target, "ARGS=--one two", cwd=repository)
    assert re.search(rf"{behind} --one two$", done.stdout, re.MULTILINE), done.stderr


def test_make_says_in_a_line_that_there_is_no_python(
    repository: Path, need_program: Find, tmp_path: Path
) -> None:
    for name in ("Makefile", "pyproject.toml", "scripts"):
        source, target = repository / name, tmp_path / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    done = run(need_program("make", "make"), "demo", "PYTHON=", cwd=tmp_path)
    assert done.returncode != 0
    assert "no Python 3.11 or newer on PATH" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_python_that_is_too_old_or_broken_is_passed_over(
    repository: Path, tmp_path: Path
) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="ascii")
    old.chmod(0o755)
    good = tmp_path / "python3.11"
    good.symlink_to(sys.executable)
    script = repository / "scripts/find_python.sh"
    done = run("/bin/sh", script, cwd=tmp_path, PATH=str(tmp_path))
    assert done.stdout.strip() == str(good)
    good.unlink()
    assert run("/bin/sh", script, cwd=tmp_path, PATH=str(tmp_path)).stdout == ""


def test_a_missing_compiler_is_one_line_before_anything_is_compiled(
    repository: Path, tmp_path: Path
) -> None:
    env = tmp_path / "env"
    (env / "bin").mkdir(parents=True)
    pip = env / "bin/python"
    pip.write_text("#!/bin/sh\nexit 1\n", encoding="ascii")  # nothing is in the wheel cache
    pip.chmod(0o755)
    done = run(
        *(sys.executable, repository / "scripts/setup_env.py", env, "demo"),
        cwd=tmp_path,
        PATH="",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        CC="",
        CXX="",
    )
    assert done.returncode == 1
    assert done.stderr.startswith("setup: no compiler found (looked for cc, gcc, clang)")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_an_unknown_purpose_is_one_line(repository: Path, tmp_path: Path) -> None:
    done = run(sys.executable, repository / "scripts/setup_env.py", "env", "nonsense", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("setup: usage")


SKIPPING = """
import pytest

def test_that_runs():
    pass

def test_that_skips():
    pytest.skip({reason!r})
"""


@pytest.mark.parametrize(
    ("reason", "watched", "passes"),
    [
        ("swtpm is not installed", "1", False),
        ("swtpm is not installed", "", True),
        ("shared data folder not found at x", "1", True),
    ],
)
def test_a_full_run_fails_on_a_skip_that_no_line_allows(
    repository: Path, tmp_path: Path, reason: str, watched: str, passes: bool
) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in ("conftest.py", "allowed_skips.txt"):
        shutil.copy(repository / "tests" / name, tests)
    (tests / "test_some.py").write_text(SKIPPING.format(reason=reason), encoding="utf-8")
    done = run(
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", tests),
        cwd=tmp_path,
        OVERSPILL_CI_ALL=watched,
    )
    assert (done.returncode == 0) is passes, done.stdout
    assert ("NOT ALLOWED TO SKIP" in done.stdout) is not passes
    assert "1 passed, 1 skipped" in done.stdout


def test_ci_runs_the_readmes_test_command(repository: Path) -> None:
    assert os.access(repository / ".ci/run", os.X_OK)
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make test\b", readme, re.MULTILINE)
