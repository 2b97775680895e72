"""Output that cannot be written: a reader who has left, a full disk; never a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

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
