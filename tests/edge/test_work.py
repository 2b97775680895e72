"""Clients that leave, engines that fail, models that take their time, drains."""

from __future__ import annotations

import asyncio
import json

import anyio
import openai
import pytest

from overspill.engines.echo import EchoOptions
from overspill.errors import EngineError
from overspill_edge.peers import _Gathering
from overspill_edge.work import HttpLimits

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
LONG = {"model": "echo", "messages": [{"role": "user", "content": "x" * 3000}]}
SHORTER = {"model": "echo", "messages": [{"role": "user", "content": "x" * 200}]}


def events(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if part]


async def is_idle(running) -> bool:
    health = await running.engine.health()
    return health.active == 0 and health.queued == 0


async def test_leaving_a_stream_frees_its_slot_and_stops_the_tokens(start_daemon, eventually):
    async with start_daemon() as running:
        running.backend.hold(after_steps=20)
        async with running.http() as http, http.stream("POST", CHAT, json={**LONG, "stream": True}):
            await eventually(lambda: running.backend.steps >= 20)
        await eventually(lambda: is_idle(running))
        running.backend.release()
        steps = running.backend.steps
        async with running.openai() as ai:
            short = [{"role": "user", "content": "hi"}]
            await ai.chat.completions.create(model="echo", messages=short)
        # The echo of a short prompt, and not the 3,000 tokens of the one that was left.
        assert running.backend.steps - steps < 100


async def test_leaving_a_whole_answer_frees_its_slot_too(start_daemon, eventually):
    async with start_daemon() as running:
        running.backend.hold(after_steps=5)

        async def ask():
            async with running.http() as http:
                await http.post(CHAT, json=LONG)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await eventually(lambda: running.backend.steps >= 5)
            group.cancel_scope.cancel()
        await eventually(lambda: is_idle(running))
        async with running.http() as http:
            status = (await http.get("/overspill/v1/status")).json()
        assert (status["active"], status["waiting"]) == (0, 0)


async def test_leaving_while_queued_takes_the_place_in_the_queue_back(start_daemon, eventually):
    async with start_daemon(echo=EchoOptions(max_sequences=1)) as running:
        running.backend.hold(after_steps=20)
        async with running.http() as http, http.stream("POST", CHAT, json={**LONG, "stream": True}):
            await eventually(lambda: running.backend.steps >= 20)

            async def ask():
                async with running.http() as other:
                    await other.post(CHAT, json=LONG)

            async def queued():
                return (await running.engine.health()).queued == 1

            async def none_queued():
                return (await running.engine.health()).queued == 0

            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await eventually(queued)
                group.cancel_scope.cancel()
            await eventually(none_queued)


async def test_comments_keep_a_client_alive_while_it_waits(start_daemon, eventually):
    async with start_daemon(limits=HttpLimits(heartbeat_s=0.05)) as running:
        running.backend.hold()
        seen = ""
        async with running.http() as http:
            body = {**LONG, "stream": True, "stream_options": {"include_usage": True}}
            async with http.stream("POST", CHAT, json=body) as answer:
                assert answer.status_code == 200
                assert "x-overspill-route" not in answer.headers
                async for text in answer.aiter_text():
                    seen += text
                    if seen.count(": waiting") == 2:
                        running.backend.release()
    *chunks, done = [part for part in events(seen) if not part.startswith(":")]
    assert done == "data: [DONE]"
    usage = json.loads(chunks[-1].removeprefix("data: "))
    assert usage["overspill"]["route"] == "device"
    assert usage["overspill"]["low_confidence"]  # it says one thing, over and over
    assert usage["overspill"]["thrown_tokens"] == 0
    said = [json.loads(c.removeprefix("data: "))["choices"] for c in chunks[:-1]]
    text = "".join(choice[0]["delta"].get("content", "") for choice in said)
    assert text == "echo: " + "x" * 3000 or len(text) == 1024


async def test_openais_client_reads_past_the_comments(start_daemon):
    async with start_daemon(limits=HttpLimits(heartbeat_s=0.05)) as running:
        running.backend.hold()
        async with running.openai() as ai:
            short = [{"role": "user", "content": "hi"}]
            stream = await ai.chat.completions.create(model="echo", messages=short, stream=True)
            running.backend.release()
            parts = [c.choices[0].delta.content or "" async for c in stream]
    assert "".join(parts) == "echo: hi"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_fails_in_mid_answer_is_told_without_its_inside(
    start_daemon, monkeypatch, stream
):
    async with start_daemon() as running:
        whole = running.backend.run

        def failing(rows):
            if running.backend.steps >= 8:
                raise EngineError("secret path /srv/model.gguf")
            return whole(rows)

        monkeypatch.setattr(running.backend, "run", failing)
        async with running.http() as http:
            answer = await http.post(CHAT, json={**SHORTER, "stream": stream})
    assert "secret" not in answer.text
    if stream:
        assert answer.status_code == 200
        *before, last = events(answer.text)
        assert before
        error = json.loads(last.removeprefix("data: "))["error"]
        assert "[DONE]" not in answer.text
    else:
        assert answer.status_code == 500
        error = answer.json()["error"]
        assert error["partial"].startswith("echo")
        assert answer.headers["x-should-retry"] == "false"
    assert error["type"] == "server_error"


async def test_openais_client_raises_what_comes_after_the_first_byte(start_daemon, monkeypatch):
    async with start_daemon() as running:
        whole = running.backend.run

        def failing(rows):
            if running.backend.steps >= 8:
                raise EngineError("inside")
            return whole(rows)

        monkeypatch.setattr(running.backend, "run", failing)
        async with running.openai() as ai:
            stream = await ai.chat.completions.create(**SHORTER, stream=True)
            with pytest.raises(openai.APIError):
                async for _ in stream:
                    pass


async def test_a_stop_lets_a_running_stream_end_and_takes_no_new_one(start_daemon, eventually):
    async with start_daemon() as running:
        running.backend.hold(after_steps=5)
        async with running.http() as http:
            body = {"model": "echo", "messages": [{"role": "user", "content": "y" * 50}]}
            async with http.stream("POST", CHAT, json={**body, "stream": True}) as answer:
                await eventually(lambda: running.backend.steps >= 5)
                running.daemon.stop()

                async def refused():
                    try:
                        async with running.http() as other:
                            await other.get("/v1/models")
                    except Exception as error:
                        return "Connect" in type(error).__name__
                    return False

                await eventually(refused)
                running.backend.release()
                text = (await answer.aread()).decode()
    assert events(text)[-1] == "data: [DONE]"


async def test_the_end_of_a_drain_cuts_answers_off_with_an_error(start_daemon, eventually):
    async with start_daemon(drain_s=0) as running:
        running.backend.hold(after_steps=20)
        async with (
            running.http() as http,
            http.stream("POST", CHAT, json={**LONG, "stream": True}) as answer,
        ):
            await eventually(lambda: running.backend.steps >= 20)
            running.daemon.stop()
            text = (await answer.aread()).decode()
    error = json.loads(events(text)[-1].removeprefix("data: "))["error"]
    assert error["code"] == "busy"
    assert "shutting down" in error["message"]


async def test_many_at_once_each_get_their_own_answer(start_daemon):
    async with start_daemon() as running, running.openai() as ai:
        answers: dict[int, str] = {}

        async def ask(number: int) -> None:
            message = {"role": "user", "content": f"number {number}"}
            stream = await ai.chat.completions.create(model="echo", messages=[message], stream=True)
            answers[number] = "".join([c.choices[0].delta.content or "" async for c in stream])

        async with anyio.create_task_group() as group:
            for number in range(24):
                group.start_soon(ask, number)
    assert answers == {number: f"echo: number {number}" for number in range(24)}


async def test_a_reader_that_stopped_reading_does_not_stop_the_end_of_a_drain(
    start_daemon, eventually
):
    async with start_daemon(drain_s=0, echo=EchoOptions(context_tokens=400_000)) as running:
        body = {"model": "echo", "messages": [{"role": "user", "content": "x" * 1000}]}
        body |= {"stream": True, "max_tokens": 900}
        raw = json.dumps(body).encode()
        stream = await anyio.connect_unix(running.ready.socket)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        await stream.send(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        await eventually(lambda: running.backend.steps >= 50)
        # Nothing is read from here on; leaving the block drains the daemon.
    await stream.aclose()


async def test_a_streams_end_comes_once_its_answer_is_written_down_and_its_slot_free(start_daemon):
    async with start_daemon() as running, running.http() as http:
        for number in range(1, 9):
            answer = await http.post(CHAT, json={**SHORTER, "max_tokens": 3, "stream": True})
            assert events(answer.text)[-1] == "data: [DONE]"
            assert running.daemon._journal.totals.answers == number
            assert (running.daemon._registry.active, running.daemon._registry.waiting) == (0, 0)
            assert not running.daemon._journal.running


class Written(asyncio.Transport):
    """What a transport was given, each write of its own."""

    def __init__(self):
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data):
        self.writes.append(bytes(data))

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True


async def test_a_head_goes_with_its_first_words_at_once_and_later_words_of_a_turn_together():
    written = Written()
    gathering = _Gathering(written)
    gathering.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert written.writes == []
    gathering.write(b"first")
    assert written.writes == [b"HTTP/1.1 200 OK\r\n\r\nfirst"]
    gathering.write(b"second")
    gathering.write(b"third")
    assert len(written.writes) == 1
    await asyncio.sleep(0)
    assert written.writes[1:] == [b"secondthird"]
    gathering.write(b"end")
    gathering.close()
    assert (written.writes[2:], written.closed) == ([b"end"], True)


async def test_the_status_counts_what_runs_and_what_waits(start_daemon, eventually):
    async with start_daemon() as running:
        running.backend.hold()

        async def ask():
            async with running.http() as http:
                await http.post(CHAT, json=LONG)

        async def counted():
            async with running.http() as http:
                status = (await http.get("/overspill/v1/status")).json()
            return (status["active"], status["waiting"]) == (2, 2)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            group.start_soon(ask)
            await eventually(counted)
            group.cancel_scope.cancel()
