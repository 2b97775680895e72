"""The README's commands for a cloud of one's own, line by line, on a node that runs."""

import re
import shlex
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from overspill.terminal import run_app

ROOT = Path(__file__).resolve().parents[2]
SHOWN = "127.0.0.1:8443"


def lines():
    text = (ROOT / "README.md").read_text("utf-8")
    block = re.search(
        r"^## A cloud of one's own\n+```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    )
    return [words for line in block[1].splitlines() if (words := shlex.split(line, comments=True))]


@contextmanager
def serving(words):
    """The README's node, on a free port; yields its address."""
    command = [sys.executable, "-m", "overspill_cloud", *words[1:], "--listen", "127.0.0.1:0"]
    node = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        yield re.match(r"Serving on (\S+);", node.stdout.readline())[1]
    finally:
        node.terminate()
        node.communicate(timeout=60)


@pytest.mark.timeout(120)
def test_the_readmes_commands_for_a_cloud_work_as_they_stand(overspill, home, monkeypatch, capfd):
    from overspill_cloud.cli import app

    (home / "config" / "config.toml").write_text('device_key = "file"\n')
    policy, serve, *device = lines()
    monkeypatch.chdir(ROOT)
    assert run_app(app, policy[0], policy[1 : policy.index(">")]) == 0
    trust = home / policy[-1]
    trust.write_text(capfd.readouterr().out)
    with serving(serve) as address:
        code, told = "", {}
        for program, *words in device:
            given = {SHOWN: address, policy[-1]: str(trust), "CODE": code}
            words = [given.get(word, word) for word in words]
            if program == "overspill-cloud":
                assert run_app(app, program, words) == 0
                code = capfd.readouterr().out.strip()
                continue
            told[words[0], words[1]] = done = overspill(*words)
            assert done.code == 0, (words, done.err)
    assert "accepted under" in told["cloud", "verify"].out
    assert "[cloud: river, " in told["run", "--cloud"].err
    assert "river" in told["receipts", "list"].out
