"""`overspill demo` where it cannot go on: one line, an exit code, and no node left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

RIVER = "examples/family/models/river-q8_0.gguf"


@pytest.fixture
def demo(repository, tmp_path):
    """Run ``overspill demo`` with options, in a home of its own."""
    environ = {**os.environ, "OVERSPILL_HOME": str(tmp_path / "home"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "overspill.cli.main", "demo", "--attester", "dev"]

    def start(*options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *options],
            cwd=repository,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(Exit code, the line that says why), and no traceback in either output."""
    out, err = process.communicate(timeout=180)
    assert "Traceback" not in out + err
    said = [line for line in err.splitlines() if line.startswith("overspill: ")]
    assert len(said) == 1, err
    return process.returncode, said[0]


def test_an_unknown_device_model_is_named_and_the_node_ends(demo):
    code, line = ended(demo("--device-model", "nosuch", "--limit", "1"))
    assert code == 3
    assert "nosuch" in line


def test_a_truncated_cloud_model_is_refused_with_the_node_s_own_reason(demo, repository, tmp_path):
    whole = (repository / RIVER).read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    code, line = ended(demo("--cloud-model", str(cut), "--limit", "1"))
    assert code == 3
    assert "cut.gguf" in line


def test_a_missing_cloud_model_is_named(demo):
    code, line = ended(demo("--cloud-model", "no/such.gguf"))
    assert code == 3
    assert "no/such.gguf" in line
    assert "--cloud-model" in line


def test_an_unknown_attester_is_a_usage_error(demo):
    code, line = ended(demo("--attester", "nosuch", "--limit", "1"))
    assert code == 2
    assert "nosuch" in line


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_ended_takes_its_node_along(demo, how):
    process = demo()
    address = None
    for line in process.stdout:
        if found := re.search(r"127\.0\.0\.1:(\d+)", line):
            address = ("127.0.0.1", int(found[1]))
            break
    assert address is not None, process.stderr.read()
    assert answers(address)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGTERM else -how)
    assert comes_true(lambda: not answers(address))


def answers(address: tuple[str, int]) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


def comes_true(condition) -> bool:
    """Whether it holds within a minute."""
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
