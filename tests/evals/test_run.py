"""`overspill eval run`: every prompt has one line, whatever ends the run and however often."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overspill.cli.main import main
from overspill.engines.registry import open_engine
from overspill.errors import BusyError, ContextOverflow, EngineError, OverspillError, UsageError
from overspill.evals.players import EnginePlayer, SignalOptions
from overspill.evals.prompt_set import load_prompts
from overspill.evals.run import Progress, RunOptions, run_prompts
from overspill.evals.run_log import RunLog, read_log
from overspill.testing import FakeEngine
from overspill.types.chat import Request

Told = list[Progress]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folders, in the test's."""
    folder = tmp_path / "home"
    (folder / "config").mkdir(parents=True)
    (folder / "config/config.toml").write_text('model = "echo"\ndevice_key = "file"\n')
    monkeypatch.setenv("OVERSPILL_HOME", str(folder))
    return folder


def last_number(request: Request) -> str:
    """The answer that the prompts expect."""
    return request.messages[-1].content.split()[-1].rstrip(".")


async def played(
    prompts: Path, out: Path, engine: FakeEngine, told: Told, *, resume: bool = False
) -> Progress:
    """A run over a fake device."""
    with RunLog(out, resume=resume) as log:
        player, options = EnginePlayer(engine, SignalOptions()), RunOptions(streams=4)
        return await run_prompts(load_prompts(prompts), player, log, options, told.append)


@pytest.mark.anyio
async def test_each_prompt_has_one_line_and_is_graded_where_it_can_be(
    prompts_file: Callable[..., Path], tmp_path: Path
) -> None:
    engine, told, out = FakeEngine(last_number), Told(), tmp_path / "deep/log.jsonl"
    done = await played(prompts_file(21), out, engine, told)
    lines = read_log(out)
    assert sorted(int(line["id"]) for line in lines) == list(range(1, 22))
    assert (done.done, done.total, done.graded, done.right) == (21, 21, 11, 11)
    assert [now.done for now in told] == list(range(1, 22))
    assert {line["correct"] for line in lines} == {True, None}
    assert all(line["model"] == "fake" and line["error"] is None for line in lines)
    assert all(line["skill"] == "saying" and len(line["sha256"]) == 64 for line in lines)
    assert {"ttft_s", "total_s", "completion_tokens", "route", "quantization"} <= lines[0].keys()


@pytest.mark.anyio
async def test_a_real_engine_tells_signals_of_each_token(
    prompts_file: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "log.jsonl"
    async with open_engine("brook") as engine:
        player = EnginePlayer(engine, SignalOptions(tokens=8, state_logits=5))
        with RunLog(out, resume=False) as log:
            options = RunOptions(streams=4, max_tokens=12)
            await run_prompts(load_prompts(prompts_file(6)), player, log, options, Told().append)
    for line in read_log(out):
        signals = line["signals"]
        count = min(8, line["completion_tokens"] + (line["finish_reason"] == "stop"))
        assert {len(signals[n]) for n in ("token_ids", "logprobs", "margins", "entropies")} == {
            count
        }
        assert len(signals["state"]) == 5
        assert all(value <= 0 for value in signals["logprobs"])
        assert line["confidence"] == pytest.approx(sum(signals["logprobs"]) / count, abs=1e-4)
        assert line["quantization"] == "Q8_0"


@pytest.mark.anyio
async def test_what_is_one_prompts_own_goes_into_its_line(
    prompts_file: Callable[..., Path], tmp_path: Path
) -> None:
    def answer(request: Request) -> str:
        if last_number(request) == "4":
            raise ContextOverflow(9, 9, 4)
        return "0"

    out = tmp_path / "log.jsonl"
    done = await played(prompts_file(8), out, FakeEngine(answer), Told())
    refused = [line for line in read_log(out) if line["route"] == "refused"]
    assert [(line["id"], line["correct"]) for line in refused] == [("5", False)]
    assert refused[0]["error"]["code"] == ContextOverflow.code
    assert (done.done, done.graded, done.right) == (8, 4, 1)


@pytest.mark.anyio
async def test_what_ends_all_others_ends_the_run_and_resuming_completes_it(
    prompts_file: Callable[..., Path], tmp_path: Path
) -> None:
    def answer(request: Request) -> str:
        if last_number(request) == "11":
            raise EngineError("The engine is gone.")
        return last_number(request)

    prompts, out = prompts_file(20), tmp_path / "log.jsonl"
    with pytest.raises(EngineError, match="gone"):
        await played(prompts, out, FakeEngine(answer), Told())
    before = read_log(out)
    assert 0 < len(before) < 20
    engine = FakeEngine(last_number)
    await played(prompts, out, engine, Told(), resume=True)
    assert len(engine.requests) == 20 - len(before)
    assert sorted(int(line["id"]) for line in read_log(out)) == list(range(1, 21))
    assert read_log(out)[: len(before)] == before


@pytest.mark.anyio
async def test_a_busy_engine_is_asked_again(
    prompts_file: Callable[..., Path], tmp_path: Path
) -> None:
    refusals: list[OverspillError] = [BusyError("Full.", retry_after_s=0.001)] * 3

    def answer(request: Request) -> str:
        if refusals:
            raise refusals.pop()
        return last_number(request)

    done = await played(prompts_file(5), tmp_path / "log.jsonl", FakeEngine(answer), Told())
    assert (done.done, done.right) == (5, 3)


@pytest.mark.anyio
async def test_a_line_that_was_cut_is_asked_again(
    prompts_file: Callable[..., Path], tmp_path: Path
) -> None:
    prompts, out = prompts_file(6), tmp_path / "log.jsonl"
    await played(prompts, out, FakeEngine(last_number), Told())
    whole = out.read_bytes()
    out.write_bytes(whole[:-20])
    engine = FakeEngine(last_number)
    await played(prompts, out, engine, Told(), resume=True)
    assert len(engine.requests) == 1
    assert out.read_bytes().count(b"\n") == 6
    assert {line["id"] for line in read_log(out)} == {str(n) for n in range(1, 7)}


@pytest.mark.anyio
async def test_a_log_is_continued_with_its_own_prompts_only(
    prompts_file: Callable[..., Path], tmp_path: Path
) -> None:
    prompts, out = prompts_file(4), tmp_path / "log.jsonl"
    await played(prompts, out, FakeEngine(last_number), Told())
    with pytest.raises(UsageError, match="exists"):
        await played(prompts, out, FakeEngine(last_number), Told())
    prompts.write_text(prompts.read_text().replace("number 2", "number 3"))
    with pytest.raises(UsageError, match="other prompts"):
        await played(prompts, out, FakeEngine(last_number), Told(), resume=True)
    out.write_text('{"not": "a line"}\n')
    with pytest.raises(UsageError, match="line 1"):
        await played(prompts, out, FakeEngine(last_number), Told(), resume=True)


def test_a_log_has_one_writer(tmp_path: Path) -> None:
    with RunLog(tmp_path / "log.jsonl", resume=False) as first:
        with pytest.raises(UsageError, match="Another process"):
            RunLog(tmp_path / "log.jsonl", resume=True)
        first.append({"id": "1"})
    with RunLog(tmp_path / "log.jsonl", resume=True) as second:
        assert [line["id"] for line in second.lines] == ["1"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": 1}, "neither"),
        ({"prompt": "x", "expected": "y", "grade": "vibes"}, "known"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "tools": "[1]"}, "tools"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "role"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"prompt": "x", "id": "same"}, "same"),
    ],
)
def test_a_bad_prompt_is_named_by_its_row(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "x", "id": "same"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UsageError, match=said) as error:
        load_prompts(path)
    assert "2" in error.value.message


def command(prompts: Path, out: Path, *more: str) -> list[str]:
    """The command line as a user types it."""
    run = ["eval", "run", "--prompts", str(prompts), "--out", str(out), *more]
    return [sys.executable, "-m", "overspill.cli.main", *run]


def until_lines(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the log has so many lines."""
    while not out.exists() or out.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "it ended too early"
        time.sleep(0.005)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_no_line_is_lost_or_doubled_by_a_kill_or_by_ctrl_c(
    end: signal.Signals, prompts_file: Callable[..., Path], tmp_path: Path, home: Path
) -> None:
    prompts, out = prompts_file(400), tmp_path / "log.jsonl"
    with subprocess.Popen(command(prompts, out), stderr=subprocess.PIPE) as process:
        until_lines(out, 20, process)
        os.kill(process.pid, end)
        said = process.communicate(timeout=30)[1].decode()
    before = read_log(out)
    assert 20 <= len(before) < 400
    if end == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in said
        assert f"{len(before)} of 400" in said
    done = subprocess.run(
        command(prompts, out, "--resume", "--json"), capture_output=True, timeout=60, check=True
    )
    lines = read_log(out)
    assert lines[: len(before)] == before
    assert sorted(int(line["id"]) for line in lines) == list(range(1, 401))
    assert json.loads(done.stdout)["done"] == 400


def test_the_policy_answers_and_says_why(
    prompts_file: Callable[..., Path], tmp_path: Path, home: Path
) -> None:
    out = tmp_path / "log.jsonl"
    assert main(command(prompts_file(6), out, "--route", "policy")[3:]) == 0
    for line in read_log(out):
        assert (line["asked"], line["route"], line["reason"]) == ("policy", "device", "only_route")
        assert line["bytes_sent"] == 0
        assert len(line["policy_sha256"]) == 64
        assert line["confidence"] <= 0


@pytest.mark.parametrize(
    ("options", "code"),
    [(("--route", "moon"), 2), (("--route", "cloud"), 2), (("--model", "no"), 3)],
)
def test_what_cannot_be_asked_is_told(
    options: tuple[str, ...],
    code: int,
    prompts_file: Callable[..., Path],
    tmp_path: Path,
    home: Path,
) -> None:
    assert main(command(prompts_file(2), tmp_path / "log.jsonl", *options)[3:]) == code


def test_two_logs_make_the_data_of_a_calibration(
    prompts_file: Callable[..., Path], tmp_path: Path, home: Path
) -> None:
    prompts, data = prompts_file(40), tmp_path / "results.jsonl"
    logs = [tmp_path / "small.jsonl", tmp_path / "large.jsonl"]
    for log, model in zip(logs, ("echo", "brook"), strict=True):
        assert main(command(prompts, log, "--model", model)[3:]) == 0
    names = ["--prompts", str(prompts), "--small", str(logs[0]), "--large", str(logs[1])]
    assert main(["eval", "join", *names, "--out", str(data)]) == 0
    rows = [json.loads(text) for text in data.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"Say the number {n}." for n in range(0, 40, 2)]
    assert {row["task"] for row in rows} == {"saying"}
    graded = {line["id"]: line["correct"] for line in read_log(logs[0])}
    assert [row["small_correct"] for row in rows] == [graded[row["id"]] for row in rows]
    assert all(row["confidence"] <= 0 for row in rows)
    crossed = ["--prompts", str(prompts_file(4)), "--small", str(logs[0]), "--large", str(logs[1])]
    assert main(["eval", "join", *crossed, "--out", str(data)]) == 2
