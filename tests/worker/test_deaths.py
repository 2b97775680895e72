"""A worker is killed in every state: each ends in a typed error, and the next request works."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from overspill.engines.options import EngineOptions
from overspill.errors import EngineDied, EngineError, ModelInvalid
from overspill.transport.local.options import LocalOptions
from overspill.types.chat import Message, Request
from overspill.types.embedding import EmbedRequest
from overspill.worker import WorkerEmbedder, WorkerEngine, WorkerOptions
from overspill.worker.process import WorkerProcess

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name == "nt", reason="signals: POSIX only"),
]

# Steps that are long enough to be caught in; a state is waited for, never timed.
SLOW = EngineOptions(token_delay_s=0.2, max_sequences=1)


def _ask(text="x" * 200, **options):
    return Request((Message("user", text),), **options)


async def _collect(engine, request):
    return [chunk async for chunk in engine.generate(request)]


async def _until(condition):
    while not condition():  # noqa: ASYNC110 - the other side is a process
        await asyncio.sleep(0.005)


def _beating():
    return WorkerOptions(local=LocalOptions(heartbeat_s=0.05))


async def _works_again(engine):
    answer = await _collect(engine, _ask("again", max_tokens=2))
    assert answer[-1].finish is not None
    assert (await engine.health()).ok


async def test_while_it_loads(monkeypatch):
    born = []
    real = WorkerProcess._load

    async def killed(self, *how):
        born.append(self.pid)
        os.kill(self.pid, signal.SIGKILL)
        return await real(self, *how)

    engine = WorkerEngine("echo")
    with monkeypatch.context() as patch:
        patch.setattr(WorkerProcess, "_load", killed)
        with pytest.raises(EngineDied, match=r"killed while it loaded.*SIGKILL"):
            await engine.start()
    assert not (await engine.health()).ok
    await _works_again(engine)
    await engine.aclose()
    assert len(born) == 1


async def test_workers_that_die_while_loading_are_counted(monkeypatch):
    born = []
    real = WorkerProcess._load

    async def killed(self, *how):
        born.append(self.pid)
        os.kill(self.pid, signal.SIGKILL)
        return await real(self, *how)

    monkeypatch.setattr(WorkerProcess, "_load", killed)
    engine = WorkerEngine("echo", worker=WorkerOptions(max_deaths=2, deaths_window_s=600))
    for _ in range(2):
        with pytest.raises(EngineDied, match="killed while it loaded"):
            await engine.start()
    for _ in range(2):
        with pytest.raises(EngineDied, match="died 2 times within 600 s"):
            await engine.start()
    assert len(born) == 2
    await engine.aclose()


async def test_a_model_that_is_refused_is_no_death(tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(64))
    engine = WorkerEngine(str(bad), worker=WorkerOptions(max_deaths=1, deaths_window_s=600))
    for _ in range(3):
        with pytest.raises(ModelInvalid):
            await engine.start()
    await engine.aclose()


async def test_while_it_is_idle():
    async with WorkerEngine("echo") as engine:
        os.kill(engine.pid, signal.SIGKILL)
        # The request may come before or after the death is seen; it is answered or told.
        try:
            await _collect(engine, _ask("now", max_tokens=2))
        except EngineDied as error:
            assert "SIGKILL" in error.message  # noqa: PT017 - either end is right
        await _works_again(engine)


async def test_while_requests_wait_and_one_decodes():
    async with WorkerEngine("echo", options=SLOW, worker=_beating()) as engine:
        seen = []

        async def decode():
            async for chunk in engine.generate(_ask(id="running")):
                seen.append(chunk.text)  # noqa: PERF401 - looked at meanwhile

        running = asyncio.create_task(decode())
        await _until(lambda: seen)
        waiting = asyncio.create_task(_collect(engine, _ask(id="waiting")))
        await _until(lambda: engine.queue_position("waiting") == 0)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match="SIGKILL") as decoded:
            await running
        with pytest.raises(EngineDied, match="SIGKILL") as queued:
            await waiting
        assert decoded.value.partial == "".join(seen) != ""
        assert queued.value.partial == ""
        await _works_again(engine)


async def test_while_it_prefills():
    slow = EngineOptions(token_delay_s=0.5)
    async with WorkerEngine("echo", options=slow, worker=_beating()) as engine:
        task = asyncio.create_task(_collect(engine, _ask(id="prefill")))
        # A step takes half a second: what is active and said nothing is being prefilled.
        while (await engine.health()).active == 0:  # noqa: ASYNC110 - a process
            await asyncio.sleep(0.005)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match="SIGKILL") as caught:
            await task
        assert caught.value.partial == ""
        await _works_again(engine)


async def test_while_it_counts_tokens():
    async with WorkerEngine("echo") as engine:
        os.kill(engine.pid, signal.SIGSTOP)
        task = asyncio.create_task(engine.count_prompt_tokens(_ask()))
        await asyncio.sleep(0)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match="SIGKILL"):
            await task
        assert await engine.count_prompt_tokens(_ask())


async def test_while_it_embeds():
    async with WorkerEmbedder("echo") as embedder:
        os.kill(embedder.pid, signal.SIGSTOP)
        task = asyncio.create_task(embedder.embed(EmbedRequest(("one",))))
        await asyncio.sleep(0)
        os.kill(embedder.pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match="SIGKILL"):
            await task
        assert (await embedder.embed(EmbedRequest(("one",)))).vectors
        assert (await embedder.health()).ok


async def test_while_nothing_of_an_answer_is_read():
    async with WorkerEngine("echo") as engine:
        stream = engine.generate(_ask("x" * 50))
        first = await anext(stream)
        # All of it has come, and waits to be read: a death takes none of it away.
        due = engine.supervisor.client._answers
        await _until(lambda: not due)
        os.kill(engine.pid, signal.SIGKILL)
        rest = [chunk async for chunk in stream]
        assert first.text + "".join(chunk.text for chunk in rest) == "echo: " + "x" * 50


async def test_a_worker_whose_parent_left_a_child_behind_ends_too():
    code = (
        "import asyncio, os, sys, time\n"
        "from overspill.worker import WorkerEngine\n"
        "async def main():\n"
        "    engine = WorkerEngine('echo')\n"
        "    await engine.start()\n"
        # A forked child keeps the pipe to the worker's stdin open.
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.close(1)\n"
        "        time.sleep(600)\n"
        "    print(engine.pid, child, flush=True)\n"
        "    time.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", code, stdout=asyncio.subprocess.PIPE
    )
    pid, child = map(int, (await parent.stdout.readline()).split())
    try:
        parent.kill()
        await parent.wait()
        await _until(lambda: not _runs(pid))
    finally:
        os.kill(child, signal.SIGKILL)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


async def test_what_fails_over_there_is_told_as_it_is():
    # An option that only the worker finds to be wrong: no crash, and no tale of a damaged file.
    engine = WorkerEngine("echo", options=EngineOptions(token_delay_s="slow"))
    try:
        with pytest.raises(EngineError) as caught:
            await _collect(engine, _ask("x"))
        assert "damaged" not in str(caught.value)
    finally:
        await engine.aclose()


async def test_a_steps_tokens_for_all_streams_come_as_one_message():
    options = EngineOptions(max_sequences=8, token_delay_s=0.02)
    at_once = WorkerOptions(gather_s=0.0)
    async with WorkerEngine("echo", options=options, worker=at_once) as engine:
        answers = engine.supervisor.client._answers
        asked = [_ask(f"stream number {i} " * 3, max_tokens=30) for i in range(8)]
        streams = [asyncio.create_task(_collect(engine, request)) for request in asked]
        sizes = []
        real = answers.hand_out

        def counting(batch):
            sizes.append(len(batch.events))
            real(batch)

        answers.hand_out = counting
        answers = await asyncio.gather(*streams)
        assert all(len(a[-1].finish.model) for a in answers)
        # Eight streams of 30 tokens, one message a step and not one for each token.
        assert sum(sizes) > 150
        assert len(sizes) < sum(sizes) / 3
