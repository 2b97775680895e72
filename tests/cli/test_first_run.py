"""The first run: a model that is not here, with a terminal and without one."""

import os
import subprocess
import sys
import threading

import pytest

from overspill.cli.first_run import proposed_model
from overspill.config import child_environment

pty = pytest.importorskip("pty", reason="needs terminals as POSIX has them")


@pytest.fixture
def creek(hub, home, brook_file):
    """Settings that name a model which only the hub has: brook's file by another name."""
    hub.files["maker/creek-GGUF"] = {"creek-Q8_0.gguf": brook_file.read_bytes()}
    (home / "config" / "config.toml").write_text(
        f'hub = "{hub.url}"\nmodel = "maker/creek-GGUF"\nisolate = false\n'
    )
    return hub


@pytest.fixture
def at_terminal(home):
    """``at_terminal("y\\n", "run", "hi")``: exit code, output, and what the terminal saw."""

    def run(typed, *arguments):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "overspill.cli.main", *arguments],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=child_environment({"TERM": "dumb"}),
            start_new_session=True,
        )
        os.close(theirs)
        seen = []
        reading = threading.Thread(target=_read_all, args=(ours, seen))
        reading.start()
        os.write(ours, typed.encode())
        out, _ = process.communicate(timeout=120)
        reading.join()
        os.close(ours)
        return process.returncode, out.decode(), b"".join(seen).decode()

    return run


def _read_all(terminal, seen):
    try:
        while piece := os.read(terminal, 4096):
            seen.append(piece)
    except OSError:  # Linux: the other side is closed
        return


def test_at_a_terminal_the_plan_is_shown_and_a_yes_fetches_and_answers(creek, at_terminal):
    code, out, seen = at_terminal("y\ny\n", "run", "Convert 3 km to m.")
    assert code == 0, seen
    for said in ("not on this machine", "processors", "apache-2.0", "sha256:", "MB", "Fetch it?"):
        assert said in seen
    assert out.strip()
    assert "[device: creek" in seen
    assert "to the first token, 0 bytes left this device" in seen
    again = at_terminal("", "run", "Convert 3 km to m.")
    assert again[0] == 0
    assert "Fetch it?" not in again[2]


@pytest.mark.parametrize(("typed", "asked"), [("n\n", "Ask"), ("y\nn\n", "Fetch it?")])
def test_a_no_fetches_nothing_and_names_the_command(creek, at_terminal, home, typed, asked):
    code, out, seen = at_terminal(typed, "run", "hi")
    assert (code, out) == (3, "")
    assert asked in seen
    assert "overspill models pull maker/creek-GGUF" in seen
    assert not list((home / "data").rglob("*.gguf"))


def test_before_a_yes_the_hub_hears_nothing(creek, at_terminal):
    at_terminal("n\n", "run", "hi")
    assert creek.seen == []


def test_without_a_terminal_nothing_is_asked_and_the_command_is_named(creek, overspill):
    refused = overspill("run", "hi")
    assert refused.code == 3
    assert refused.err.count("\n") == 1
    assert "overspill models pull maker/creek-GGUF" in refused.err
    as_json = overspill("run", "hi", "--json")
    assert (as_json.code, as_json.json["error"]["code"]) == (3, "model_not_found")


def test_what_no_hub_could_have_is_not_asked_about(home, at_terminal):
    code, _, seen = at_terminal("", "run", "hi", "--model", "/nowhere/model.gguf")
    assert code == 3
    assert "?" not in seen


def test_chat_with_brook_alone_names_a_model_for_this_machine(home, at_terminal):
    (home / "config" / "config.toml").write_text("isolate = false\n")
    code, _, seen = at_terminal("/exit\n", "chat")
    assert code == 0, seen
    assert ("overspill models pull " in seen) is (proposed_model(_free()) is not None)


def _free():
    from overspill.engines.live_memory import available_memory

    return available_memory()


@pytest.mark.parametrize("free_bytes", [None, 0, 100_000_000])
def test_a_machine_too_small_or_unknown_gets_no_proposal(free_bytes):
    assert proposed_model(free_bytes) is None


def test_the_proposal_leaves_half_of_the_memory_and_grows_with_it():
    sizes = []
    for free in (2 * 10**9, 8 * 10**9, 64 * 10**9):
        proposed = proposed_model(free)
        assert proposed is not None
        sizes.append(proposed[1].parameters)
        assert sizes[-1] <= free / 2
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
