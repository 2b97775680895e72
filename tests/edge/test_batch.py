"""`overspill batch`: every line is answered once, whatever ends the run in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from overspill.testing import FakeEngine
from overspill_edge.batch import Batch, Tally
from overspill_edge.batch_files import Journal, check_lines

LIMITED = """
import os, resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
os.execv(sys.argv[2], sys.argv[2:])
"""


def chat(custom_id, text="hello", **body):
    messages = [{"role": "user", "content": text}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "auto", "messages": messages, **body},
    }


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def answers(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def requests(tmp_path):
    return write(tmp_path / "in.jsonl", [chat(f"r{n}", f"hello {n}") for n in range(40)])


def test_each_line_is_answered_in_the_dialects_shape(command, requests, tmp_path):
    out = tmp_path / "out.jsonl"
    result = command.run("batch", str(requests), "--out", str(out), "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["total"], told["done"], told["failed"], told["device"]) == (40, 40, 0, 40)
    found = {line["custom_id"]: line for line in answers(out)}
    assert len(found) == 40
    for n in range(40):
        line = found[f"r{n}"]
        body = line["response"]["body"]
        assert line["response"]["status_code"] == 200
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"]["content"] == f"echo: hello {n}"
        assert line["error"] is None
        assert line["overspill"]["route"] == "device"
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"in.jsonl", "out.jsonl"}
    assert told["completion_tokens"] == sum(
        line["response"]["body"]["usage"]["completion_tokens"] for line in found.values()
    )


def test_what_cannot_be_answered_is_the_answer_of_its_line(command, tmp_path):
    requests = write(
        tmp_path / "in.jsonl",
        [
            chat("good"),
            chat("unknown", model="nobody"),
            chat("bad", temperature=9),
            chat("stream", stream=True),
            chat("long", "word " * 20_000),
            {**chat("vector"), "url": "/v1/embeddings", "body": {"model": "echo", "input": "a"}},
        ],
    )
    out = tmp_path / "out.jsonl"
    result = command.run("batch", str(requests), "--out", str(out))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    found = {line["custom_id"]: line["response"] for line in answers(out)}
    assert {name: line["status_code"] for name, line in found.items()} == {
        "good": 200,
        "unknown": 404,
        "bad": 400,
        "stream": 400,
        "long": 400,
        "vector": 200,
    }
    assert found["bad"]["body"]["error"]["param"] == "temperature"
    assert found["long"]["body"]["error"]["code"] == "context_length_exceeded"
    assert found["vector"]["body"]["object"] == "list"


def test_failed_lines_are_answered_again_when_asked(command, tmp_path):
    requests = write(tmp_path / "in.jsonl", [chat("good"), chat("unknown", model="nobody")])
    out = tmp_path / "out.jsonl"
    command.run("batch", str(requests), "--out", str(out))
    command.run("batch", str(requests), "--out", str(out))
    assert len(answers(out)) == 2
    again = command.run("batch", str(requests), "--out", str(out), "--retry-failed", "--json")
    assert json.loads(again.stdout)["done"] == 1
    assert sorted(line["custom_id"] for line in answers(out)) == ["good", "unknown"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: it is no JSON"),
        ("[]", "no JSON object"),
        (json.dumps({**chat("x"), "custom_id": 7}), "has no custom_id"),
        (json.dumps({**chat("x"), "method": "GET"}), "is no POST"),
        (json.dumps({**chat("x"), "url": "/v1/files"}), "is no POST"),
        (json.dumps({**chat("x"), "body": "hi"}), "has no body"),
        (json.dumps(chat("one")), "repeats the custom_id 'one'"),
    ],
)
def test_a_file_with_a_wrong_line_runs_nothing(command, tmp_path, line, says):
    requests = tmp_path / "in.jsonl"
    requests.write_text(json.dumps(chat("one")) + "\n" + line + "\n")
    out = tmp_path / "out.jsonl"
    result = command.run("batch", str(requests), "--out", str(out))
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("file", ["none.jsonl", "empty.jsonl"])
def test_no_requests(command, tmp_path, file):
    (tmp_path / "empty.jsonl").write_text("\n")
    result = command.run("batch", str(tmp_path / file), "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_requests_are_never_written_over(command, requests):
    before = requests.read_bytes()
    for out in (requests, requests.parent / "." / requests.name):
        result = command.run("batch", str(requests), "--out", str(out))
        assert result.returncode == 2
        assert "is the file of requests" in result.stderr
    assert requests.read_bytes() == before


def test_answers_to_another_file_are_not_mixed(command, requests, tmp_path):
    out = tmp_path / "out.jsonl"
    command.run("batch", str(requests), "--out", str(out))
    before = out.read_bytes()
    other = write(tmp_path / "other.jsonl", [chat("r0", "something else")])
    result = command.run("batch", str(other), "--out", str(out))
    assert result.returncode == 2
    assert "other requests" in result.stderr
    assert out.read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_run_loses_nothing_and_repeats_nothing(command, requests, tmp_path):
    out = tmp_path / "out.jsonl"
    slow = 'isolate = false\nmodel = "echo"\n'
    (command.home / "config" / "config.toml").write_text(slow)
    arguments = [sys.executable, "-m", "overspill.cli.main", "batch", str(requests)]
    for kill_after in (3, 17):
        process = subprocess.Popen(
            [*arguments, "--out", str(out), "--slots", "1"], env=command.environment()
        )
        while process.poll() is None:
            if out.exists() and out.read_bytes().count(b"\n") >= kill_after:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.001)
        process.wait()
    kept = answers_so_far(out)
    with out.open("ab") as file:  # a line that was torn by the end of the machine
        file.write(b'{"id": "batch_req_torn", "custom_id": "r')
    result = command.run("batch", str(requests), "--out", str(out))
    assert result.returncode == 0, result.stderr
    found = answers(out)
    assert sorted(line["custom_id"] for line in found) == sorted(f"r{n}" for n in range(40))
    assert found[: len(kept)] == kept


def answers_so_far(path: Path):
    return [json.loads(raw) for raw in path.read_bytes().splitlines(keepends=True) if b"\n" in raw]


def test_two_runs_do_not_write_into_one_file(tmp_path, requests, command):
    out = tmp_path / "out.jsonl"
    with Journal.open(out, check_lines(requests)):
        result = command.run("batch", str(requests), "--out", str(out))
    assert result.returncode == 2
    assert "Another run" in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_disk_that_takes_no_more_is_said_and_tears_nothing(command, requests, tmp_path):
    out = tmp_path / "out.jsonl"
    result = subprocess.run(
        [
            *(sys.executable, "-c", LIMITED, "5000", sys.executable),
            *("-m", "overspill.cli.main", "batch", str(requests), "--out", str(out)),
        ],
        env=command.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    # A line that ends it; what else found no room is told in a line too.
    lines = result.stderr.strip().splitlines()
    assert "out.jsonl" in lines[-1]
    assert "cannot be written" in lines[-1]
    assert all(line.startswith("overspill: ") and "spending" in line for line in lines[:-1])
    kept = answers(out)
    assert 0 < len(kept) < 40
    assert command.run("batch", str(requests), "--out", str(out)).returncode == 0
    assert answers(out)[: len(kept)] == kept


@pytest.mark.anyio
async def test_what_is_busy_is_asked_again(tmp_path, settings_for_batch):
    from overspill import AsyncOverspill
    from overspill.errors import BusyError

    class Busy(FakeEngine):
        refusals = 2

        async def _generate(self, request):
            if self.refusals:
                self.refusals -= 1
                raise BusyError("All slots are taken.", retry_after_s=0.01)
            async for chunk in super()._generate(request):
                yield chunk

    requests = write(tmp_path / "in.jsonl", [chat("one")])
    out = tmp_path / "out.jsonl"
    async with AsyncOverspill("t", settings=settings_for_batch, device=Busy("yes")) as ai:
        with Journal.open(out, check_lines(requests)) as journal:
            tally = Tally(total=1)
            await Batch(ai, journal, tally, floor=ai.settings.privacy).run(requests, at_once=4)
    assert tally.waits == 2
    assert answers(out)[0]["response"]["body"]["choices"][0]["message"]["content"] == "yes"


@pytest.mark.anyio
async def test_a_quota_that_is_spent_for_hours_is_the_lines_answer(tmp_path, settings_for_batch):
    from overspill import AsyncOverspill
    from overspill.errors import BusyError

    class Spent(FakeEngine):
        async def _generate(self, request):
            raise BusyError("No tokens left.", retry_after_s=7200.0, reason="QUOTA")
            yield

    requests = write(tmp_path / "in.jsonl", [chat("one")])
    out = tmp_path / "out.jsonl"
    async with AsyncOverspill("t", settings=settings_for_batch, device=Spent("yes")) as ai:
        with Journal.open(out, check_lines(requests)) as journal:
            tally = Tally(total=1)
            await Batch(ai, journal, tally, floor=ai.settings.privacy).run(requests, at_once=4)
    response = answers(out)[0]["response"]
    assert (response["status_code"], response["body"]["error"]["code"]) == (
        429,
        "insufficient_quota",
    )


@pytest.fixture
def settings_for_batch(tmp_path):
    from overspill.config import load_settings

    return load_settings(environ={"OVERSPILL_HOME": str(tmp_path / "home")})
