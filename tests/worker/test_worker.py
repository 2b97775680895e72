"""The worker process: who dies, who is told, what is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from overspill.engines.answer_stream import MAX_GATHERED
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.errors import BusyError, ContextOverflow, EngineDied, TransportError
from overspill.transport.local.options import LocalOptions
from overspill.transport.local.worker_client import WorkerClient
from overspill.types.chat import Message, Request
from overspill.worker import WorkerEngine, WorkerOptions

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name == "nt", reason="signals: POSIX only"),
]

SLOW = EngineOptions(token_delay_s=0.02)


def _ask(text="x" * 400, **options):
    return Request((Message("user", text),), **options)


async def _collect(engine, request):
    return [chunk async for chunk in engine.generate(request)]


def _text(chunks):
    return "".join(chunk.text for chunk in chunks)


async def _until(condition):
    while not condition():  # noqa: ASYNC110 - the other side is a process
        await asyncio.sleep(0.01)


async def _kill(engine):
    """Kill the worker and wait until all its threads are gone; a moment passes between."""
    os.kill(engine.pid, signal.SIGKILL)
    while "SIGKILL" not in (await engine.health()).detail:  # noqa: ASYNC110 - a process
        await asyncio.sleep(0.01)


def _exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended; only its parent hasn't looked yet.
    return (
        Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if os.path.exists("/proc") else True
    )


@pytest.fixture
async def engine():
    async with WorkerEngine("echo", options=SLOW) as running:
        yield running


@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
async def test_a_death_ends_running_streams_with_what_they_had(engine, deadly):
    seen = []

    async def read(stream):
        async for chunk in stream:
            seen.append(chunk.text)  # noqa: PERF401 - others look at it meanwhile

    tasks = [asyncio.create_task(read(engine.generate(_ask()))) for _ in range(2)]
    await _until(lambda: len(seen) > 8)
    os.kill(engine.pid, deadly)
    for task in tasks:
        with pytest.raises(EngineDied, match=deadly.name) as caught:
            await task
        assert caught.value.partial.startswith("echo")
    health = await engine.health()
    assert not health.ok
    assert deadly.name in health.detail


async def test_tokens_cross_the_border_several_at_a_time_but_for_the_first():
    options = EngineOptions(scheduler=SchedulerOptions(speculation="off"))
    async with WorkerEngine("echo", options=options, worker=WorkerOptions(gather_s=60.0)) as engine:
        chunks = await _collect(engine, _ask(max_tokens=42))
    sizes = [len(chunk.token_ids) for chunk in chunks]
    assert sum(sizes) == 42
    # Four steps' tokens are one message; a busy reader finds several messages.
    assert sizes[0] == 1 or sizes[0] >= 5
    assert all(size >= MAX_GATHERED for size in sizes[1:-1])


async def test_the_next_request_starts_a_new_worker(engine):
    first = engine.pid
    await _kill(engine)
    assert _text(await _collect(engine, _ask("again"))) == "echo: again"
    assert engine.pid != first
    assert (await engine.health()).ok


async def test_a_worker_that_keeps_dying_is_given_up():
    options = WorkerOptions(max_deaths=2, deaths_window_s=600.0)
    async with WorkerEngine("echo", worker=options) as engine:
        for _ in range(2):
            await engine.start()
            await _kill(engine)
        with pytest.raises(EngineDied, match="died 2 times"):
            await _collect(engine, _ask("x"))
        assert not (await engine.health()).ok


async def test_leaving_a_stream_reaches_the_scheduler_over_there(engine):
    stream = engine.generate(_ask(max_tokens=1000))
    await anext(stream)
    assert (await engine.health()).active == 1
    await stream.aclose()
    for _ in range(200):
        if (await engine.health()).active == 0:
            break
        await asyncio.sleep(0.01)
    assert (await engine.health()).active == 0


async def test_typed_errors_cross_the_border(engine):
    with pytest.raises(ContextOverflow) as caught:
        await _collect(engine, _ask("x" * 10_000))
    assert caught.value.prompt_tokens > caught.value.context == engine.card.context
    full = EngineOptions(
        max_sequences=1, token_delay_s=0.02, scheduler=SchedulerOptions(max_queued=0)
    )
    async with WorkerEngine("echo", options=full) as small:
        with pytest.raises(BusyError) as busy:
            await _collect(small, _ask("x"))
        assert busy.value.retry_after_s == 1.0


async def test_a_frozen_worker_is_noticed_killed_and_replaced():
    options = WorkerOptions(
        health_timeout_s=0.5, local=LocalOptions(silence_s=1.0, heartbeat_s=0.2)
    )
    async with WorkerEngine("echo", options=SLOW, worker=options) as engine:
        task = asyncio.create_task(_collect(engine, _ask()))
        await asyncio.sleep(0)
        pid = engine.pid
        os.kill(pid, signal.SIGSTOP)
        assert not (await engine.health()).ok
        with pytest.raises(EngineDied, match="did not answer"):
            await task
        assert not _exists(pid)
        assert _text(await _collect(engine, _ask("back"))) == "echo: back"


async def test_a_slow_step_is_bridged_by_heartbeats():
    options = WorkerOptions(local=LocalOptions(silence_s=1.5, heartbeat_s=0.1))
    slow = EngineOptions(token_delay_s=2.0)
    async with WorkerEngine("echo", options=slow, worker=options) as engine:
        assert _text(await _collect(engine, _ask("x", max_tokens=1))) == "e"


async def test_the_queue_position_is_told_by_heartbeats():
    options = WorkerOptions(local=LocalOptions(heartbeat_s=0.05))
    one = EngineOptions(max_sequences=1, token_delay_s=0.05)
    async with WorkerEngine("echo", options=one, worker=options) as engine:
        first = asyncio.create_task(_collect(engine, _ask(id="first")))
        await _until(lambda: not first.done())
        others = [asyncio.create_task(_collect(engine, _ask(id=f"r{i}"))) for i in range(2)]
        await _until(lambda: {engine.queue_position(f"r{i}") for i in range(2)} >= {0, 1})
        for task in (first, *others):
            task.cancel()
        await asyncio.wait({first, *others})


async def test_only_we_can_talk_to_it(engine):
    process = engine.supervisor.process
    folder = process.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "engine.sock").stat().st_mode) == 0o600
    stranger = await WorkerClient.connect(f"unix:{folder / 'engine.sock'}", token="guess")
    with pytest.raises(TransportError, match="No answer"):
        await stranger.status()
    with pytest.raises(TransportError, match="No answer"):
        [chunk async for chunk in stranger.chat(_ask())]
    await stranger.aclose()
    # The failed calls are nobody's death.
    assert (await engine.health()).ok


async def test_loopback_serves_where_there_are_no_unix_sockets():
    async with WorkerEngine("echo", worker=WorkerOptions(loopback=True)) as engine:
        assert _text(await _collect(engine, _ask("tcp"))) == "echo: tcp"


async def test_nothing_is_left_behind(engine):
    folder, pid = engine.supervisor.process.folder, engine.pid
    await _collect(engine, _ask("x"))
    await engine.aclose()
    assert not folder.exists()
    assert not _exists(pid)


async def test_a_worker_ends_with_its_parent(tmp_path):
    code = (
        "import asyncio, os, sys\n"
        "from overspill.worker import WorkerEngine\n"
        "async def main():\n"
        "    engine = WorkerEngine('echo')\n"
        "    await engine.start()\n"
        "    print(engine.pid, engine.supervisor.process.folder, flush=True)\n"
        "    await asyncio.sleep(3600)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE
    )
    pid, folder = (await parent.stdout.readline()).decode().split()
    assert _exists(int(pid))
    parent.kill()
    await parent.wait()
    await _until(lambda: not _exists(int(pid)))
    await _until(lambda: not Path(folder).exists())


async def test_closing_while_it_starts_leaves_no_process():
    engine = WorkerEngine("echo")
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0.05)
    await engine.aclose()
    with pytest.raises(EngineDied, match="closed while it started"):
        await starting
    assert engine.pid is None


async def test_concurrent_first_requests_share_one_worker():
    engine = WorkerEngine("echo")
    answers = await asyncio.gather(*(_collect(engine, _ask(f"n{i}")) for i in range(5)))
    assert [_text(chunks) for chunks in answers] == [f"echo: n{i}" for i in range(5)]
    await engine.aclose()


async def test_calls_do_not_pile_up(engine):
    due = engine.supervisor.client._answers
    for _ in range(20):
        stream = engine.generate(_ask(max_tokens=500))
        await anext(stream)
        await stream.aclose()
    assert not due
    answer = await _collect(engine, replace(_ask("last"), id="last"))
    assert _text(answer) == "echo: last"


def test_started_by_hand_it_says_what_it_is():
    done = subprocess.run(
        [sys.executable, "-m", "overspill.worker"], input="", capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "started by overspill" in done.stderr
    assert "Traceback" not in done.stderr


async def test_health_counts_drafts_and_tells_what_is_not_done():
    always = EngineOptions(draft_model="echo", scheduler=SchedulerOptions(speculation="always"))
    async with WorkerEngine("echo", options=always) as engine:
        guess = "echo: one two three"
        await _collect(engine, _ask("one two three", draft=guess))
        health = await engine.health()
    assert health.accepted_tokens >= len(guess) - 2
    assert health.drafted_tokens >= health.accepted_tokens
    assert health.notes == ()
    off = replace(always, scheduler=SchedulerOptions(speculation="off"))
    async with WorkerEngine("echo", options=off) as engine:
        health = await engine.health()
    assert health.ok
    assert health.notes == ("The draft model is not used: speculation is off.",)


async def test_a_slow_reader_stalls_nobody_and_gets_what_gathered_at_once(engine):
    slow = engine.generate(_ask("y" * 300, max_tokens=300))
    first = await anext(slow)
    # Nobody reads it while another answer is read to its end, and while it ends itself.
    assert _text(await _collect(engine, _ask("z" * 40))) == "echo: " + "z" * 40
    while (await engine.health()).active:  # noqa: ASYNC110 - the other side is a process
        await asyncio.sleep(0.01)
    rest = [chunk async for chunk in slow]
    assert first.text + _text(rest) == ("echo: " + "y" * 300)[:300]
    assert rest[-1].finish.usage.completion_tokens == 300
    assert len(rest) <= 2


async def test_leaving_at_any_moment_breaks_nobody_elses_answer(engine):
    text = "y" * 100
    pid = engine.pid
    other = asyncio.create_task(_collect(engine, _ask(text, max_tokens=200)))
    for turns in range(40):
        stream = engine.generate(_ask("x"))
        begun = asyncio.ensure_future(anext(stream))
        for _ in range(turns // 2):
            await asyncio.sleep(0)
        begun.cancel()
        await asyncio.wait({begun})
        await stream.aclose()
    assert _text(await other) == "echo: " + text
    assert engine.pid == pid
    while (await engine.health()).active:  # noqa: ASYNC110 - the other side is a process
        await asyncio.sleep(0.01)
