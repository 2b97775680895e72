"""`overspill logs`: the lines of a daemon that really ran, followed over a turn of the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import httpx2
import pytest

from overspill.cli.logs import as_record

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets")
SECRET = "the launch code is 0000"


def ask(path):
    body = {"model": "echo", "messages": [{"role": "user", "content": SECRET}]}
    transport = httpx2.HTTPTransport(uds=path)
    with httpx2.Client(transport=transport, base_url="http://localhost", timeout=60) as http:
        assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_a_daemons_log_tells_what_was_done_and_never_what_was_said(command):
    log = command.home / "state" / "log" / "daemon.log"
    with command.serving("--log-file", str(log)) as (_, ready):
        ask(ready["socket"])
        command.run("run", "hello")
        shown = command.run("logs")
        as_json = json.loads(command.run("logs", "--json").stdout)
    assert shown.returncode == 0, shown.stderr
    assert "ChatCompletions status=200" in shown.stdout
    assert "Handshake status=200" in shown.stdout
    assert "NoneType" not in shown.stdout
    assert SECRET not in shown.stdout
    assert log.stat().st_mode & 0o777 == 0o600
    assert as_json["file"] == str(log)
    levels = {line["level"] for line in as_json["lines"]}
    assert levels == {"INFO"}
    assert any("app=" in line["message"] for line in as_json["lines"])


def test_follow_goes_on_over_a_turn_of_the_file(command):
    log = command.home / "a.log"
    log.write_text("old\nfirst\nhal")
    process = subprocess.Popen(
        [sys.executable, "-m", "overspill.cli.main", "logs", "-f", "-n", "1", "--file", str(log)],
        env=command.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        with log.open("a") as more:
            more.write("f\nsecond\n")
        assert [process.stdout.readline() for _ in range(2)] == ["half\n", "second\n"]
        os.replace(log, command.home / "a.log.1")
        log.write_text("after the turn\n")
        assert process.stdout.readline() == "after the turn\n"
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def test_without_a_log_it_says_who_would_write_one(command):
    none = command.run("logs")
    assert none.returncode == 2
    assert "overspill service install" in none.stderr
    assert len(none.stderr.strip().splitlines()) == 1


def test_a_line_that_goes_on_is_no_record_of_its_own():
    assert as_record("2026-01-02 03:04:05,678 INFO x y") == {
        "time": "2026-01-02 03:04:05,678",
        "level": "INFO",
        "message": "x y",
    }
    assert as_record('  File "a.py", line 3') == {
        "time": None,
        "level": None,
        "message": '  File "a.py", line 3',
    }
