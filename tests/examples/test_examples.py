"""Every example in examples/ runs as its reader would run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(p.name for p in (ROOT / "examples").glob("*.py"))
SAYS = {
    "agent_chain.py": " s  ",
    "first_answer.py": "0 bytes left",
    "openai_client.py": "-- brook",
    "own_cloud.py": "receipt verified for river",
    "plan_and_privacy.py": "leaves: nothing",
    "streaming.py": "-- left after",
}


def test_every_example_says_what_it_shows():
    assert set(EXAMPLES) == set(SAYS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        env={**os.environ, "OVERSPILL_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout
    assert "Traceback" not in done.stderr
