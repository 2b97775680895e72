"""What holds in every dialect: nothing cut, errors after the first byte, bad input, our routes."""

from __future__ import annotations

import json

import anyio
import httpx2
import pytest

from overspill.engines.echo import EchoOptions
from overspill.errors import EngineError
from overspill.types.chat import Privacy
from overspill_edge.access import CALLER_KEY, Caller
from overspill_edge.endpoint import Service
from overspill_edge.http import routes
from overspill_edge.problems import ErrorBoundary
from overspill_edge.tokens import Scope
from overspill_edge.work import HttpLimits, WorkRegistry

pytestmark = pytest.mark.anyio

SECRET = "the-users-own-words"
WEATHER = {"type": "object", "properties": {}}


def turns(text):
    return [{"role": "user", "content": text}]


BODIES = {
    "/v1/chat/completions": lambda text: {"model": "echo", "messages": turns(text)},
    "/v1/completions": lambda text: {"model": "echo", "prompt": text},
    "/v1/responses": lambda text: {"model": "echo", "input": text},
    "/v1/messages": lambda text: {"model": "echo", "max_tokens": 64, "messages": turns(text)},
}
ENDS = {
    "/v1/chat/completions": "data: [DONE]",
    "/v1/completions": "data: [DONE]",
    "/v1/responses": "response.completed",
    "/v1/messages": "message_stop",
}
ANTHROPIC = "/v1/messages"


@pytest.fixture(params=BODIES)
def path(request):
    return request.param


def code_of(answer):
    return answer.headers["x-overspill-code"]


async def test_a_fact_before_an_over_long_prompt_is_never_lost_in_silence(start_daemon, path):
    text = "The code is 4711. " + "word " * 100
    async with start_daemon(echo=EchoOptions(context_tokens=300)) as running:
        async with running.http() as http:
            for stream in (False, True):
                body = {**BODIES[path](text), "stream": stream}
                answer = await http.post(path, json=body)
                assert answer.status_code == 400, answer.text
                assert code_of(answer) == "context_length_exceeded"
                message = answer.json()["error"]["message"]
                assert "300" in message
        assert running.backend.steps == 0


async def test_a_bound_beyond_the_context_is_filled_and_said_in_anthropics_dialect(start_daemon):
    started = start_daemon(echo=EchoOptions(context_tokens=80))
    async with started as running, running.http() as http:
        body = {"model": "echo", "max_tokens": 4096, "messages": turns("x" * 40)}
        answer = (await http.post(ANTHROPIC, json=body)).json()
    assert answer["stop_reason"] == "model_context_window_exceeded"
    used = answer["usage"]
    assert used["input_tokens"] + used["output_tokens"] == 80


async def test_a_failure_after_the_first_byte_is_an_event_and_no_good_end(start_daemon, path):
    async with start_daemon() as running, running.http() as http:
        backend = running.backend
        body = {**BODIES[path]("hello"), "stream": True}
        backend.hold(after_steps=4)
        async with http.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200
            text = ""
            async for piece in answer.aiter_text():
                text += piece
                if backend.held_at is not None and "e" in text:

                    def fail(rows):
                        raise EngineError(f"{SECRET} broke")

                    backend.run = fail
                    backend.release()
    assert ENDS[path] not in text
    assert SECRET not in text
    assert "error" in text
    if path == "/v1/responses":
        assert "event: error\n" in text
        last = json.loads(text.strip().rpartition("data: ")[2])
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    if path == ANTHROPIC:
        assert "event: error\n" in text


async def test_a_silent_stream_is_kept_alive_by_comments(start_daemon, path):
    async with start_daemon(limits=HttpLimits(heartbeat_s=0.05)) as running:
        running.backend.hold()
        async with running.http() as http:
            body = {**BODIES[path]("hello"), "stream": True}
            async with http.stream("POST", path, json=body) as answer:
                lines = answer.aiter_lines()
                assert await anext(lines) == ": waiting"
                running.backend.release()
                rest = [line async for line in lines]
    assert any(ENDS[path] in line for line in rest)


WRONG = {
    "/v1/chat/completions": [({"n": 2}, "n"), ({"temperature": "x"}, "temperature")],
    "/v1/completions": [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
    "/v1/responses": [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tools"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
    ],
    "/v1/messages": [
        ({"max_tokens": None}, "max_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ({"tool_choice": {"type": "any"}}, "no tool is given"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"output_config": {"effort": "high"}}, "output_config.effort"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
            "messages[0].content[0].type",
        ),
    ],
}


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [(path, more, param) for path, rows in WRONG.items() for more, param in rows],
)
async def test_what_cannot_be_honoured_is_400_by_its_name(start_daemon, path, more, param):
    async with start_daemon() as running, running.http() as http:
        answer = await http.post(path, json={**BODIES[path]("hello"), **more})
        assert running.backend.steps == 0
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert param in (error["message"] if path == ANTHROPIC else error["param"])


def showing(path, url):
    """A body that shows an image by its URL."""
    match path:
        case "/v1/messages":
            part = {"type": "image", "source": {"type": "url", "url": url}}
        case "/v1/responses":
            part = {"type": "input_image", "image_url": url}
            return {"model": "echo", "input": [{"role": "user", "content": [part]}]}
        case _:
            part = {"type": "image_url", "image_url": {"url": url}}
    return {**BODIES[path]("x"), "messages": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize("path", [path for path in BODIES if path != "/v1/completions"])
async def test_bad_input_is_refused_in_the_dialect(start_daemon, path, caplog):
    caplog.set_level("DEBUG")
    good = BODIES[path](SECRET)
    async with start_daemon() as running, running.http() as http:
        for url in ("http://169.254.169.254/latest", "file:///etc/passwd", "http://[fe80::1]/x"):
            answer = await http.post(path, json=showing(path, url))
            assert (answer.status_code, code_of(answer)) == (400, "unsupported_option")
            assert "nothing is fetched" in answer.json()["error"]["message"]
        unknown = await http.post(path, json={**good, "model": "ecko"})
        assert (unknown.status_code, code_of(unknown)) == (404, "model_not_found")
        assert "echo" in unknown.json()["error"]["message"]
        json_type = {"Content-Type": "application/json"}
        for raw in (b"{", b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"\xff"):
            answer = await http.post(path, content=raw, headers=json_type)
            assert (answer.status_code, code_of(answer)) == (400, "invalid_request")
        for headers, status, code in (
            ({"Host": "evil.example"}, 403, "host_not_allowed"),
            ({"Origin": "null"}, 403, "origin_not_allowed"),
            ({"Origin": "file://"}, 403, "origin_not_allowed"),
        ):
            answer = await http.post(path, json=good, headers=headers)
            assert (answer.status_code, code_of(answer)) == (status, code)
            assert ("type" in answer.json()) == (path == ANTHROPIC)
        answer = await http.post(f"{path}?token=ovs_x", json=good)
        assert (answer.status_code, code_of(answer)) == (400, "token_in_query")
        assert SECRET not in answer.text
        assert (await http.post(path, json=good)).status_code == 200
    assert not [r for r in caplog.records if r.name.startswith("overspill") and SECRET in str(r)]


async def test_tokens_are_taken_from_either_header_and_scopes_hold(start_daemon, path):
    async with start_daemon() as running, running.http(tcp=True) as http:
        body = BODIES[path]("hello")
        infer, models = running.token(), running.token((Scope.MODELS,))
        assert (await http.post(path, json=body)).status_code == 401
        for headers in ({"x-api-key": infer}, {"Authorization": f"Bearer {infer}"}):
            assert (await http.post(path, json=body, headers=headers)).status_code == 200
        other = await http.post(path, json=body, headers={"x-api-key": models})
        assert (other.status_code, code_of(other)) == (403, "insufficient_scope")


async def test_an_assistants_last_turn_is_the_beginning_of_the_answer(start_daemon):
    messages = [*turns("hello"), {"role": "assistant", "content": "echo: h"}]
    async with start_daemon() as running, running.http() as http:
        body = {"model": "echo", "max_tokens": 64, "messages": messages}
        answer = (await http.post(ANTHROPIC, json=body)).json()
    assert answer["content"][0]["text"] == "ello"


async def test_a_stop_sequence_is_named(start_daemon):
    async with start_daemon() as running, running.http() as http:
        body = {**BODIES[ANTHROPIC]("hello"), "stop_sequences": ["zz", "ll"]}
        answer = (await http.post(ANTHROPIC, json=body)).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "ll")
    assert answer["content"][0]["text"] == "echo: he"


@pytest.mark.parametrize(
    ("path", "choice"),
    [
        (
            "/v1/chat/completions",
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "b"}}],
                },
            },
        ),
        (
            "/v1/responses",
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "b"}],
            },
        ),
    ],
)
async def test_of_allowed_tools_one_is_called(start_daemon, path, choice):
    functions = [{"name": name, "parameters": WEATHER} for name in ("a", "b")]
    if path == "/v1/responses":
        tools = [{"type": "function", **function} for function in functions]
    else:
        tools = [{"type": "function", "function": function} for function in functions]
    body = {**BODIES[path]("call a {}"), "tools": tools, "tool_choice": choice}
    async with start_daemon() as running, running.http() as http:
        answer = (await http.post(path, json=body)).json()
    assert '"name": "b"' in json.dumps(answer.get("output") or answer["choices"])


async def test_who_would_not_wait_for_a_model_is_told_when_to_come_back(start_daemon, path):
    async with start_daemon() as running:
        service = Service(
            answerer=running.client,
            floor=Privacy.DEVICE,
            registry=WorkRegistry(),
            limits=HttpLimits(heartbeat_s=0.01),
            started_unix=0,
            loading=lambda: 0.4,
        )
        inside = ErrorBoundary(routes(service))

        told = anyio.Event()

        async def app(scope, receive, send):
            async def note(message):
                if b": loading 40%" in message.get("body", b""):
                    told.set()
                await send(message)

            scope[CALLER_KEY] = Caller("notes", frozenset(Scope))
            await inside(scope, receive, note)

        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            body = BODIES[path]("hello")
            for more, headers in (
                ({"overspill": {"wait": False}}, {}),
                ({}, {"Prefer": "respond-async, wait=0"}),
            ):
                answer = await http.post(path, json={**body, **more}, headers=headers)
                assert (answer.status_code, code_of(answer)) == (503, "model_loading")
                assert int(answer.headers["retry-after"]) > 0
                assert "40%" in answer.json()["error"]["message"]
            running.backend.hold()
            async with anyio.create_task_group() as group:
                found = []

                async def ask():
                    found.append(await http.post(path, json={**body, "stream": True}))

                group.start_soon(ask)
                with anyio.move_on_after(30):
                    await told.wait()
                running.backend.release()
            assert ": loading 40%" in found[0].text


async def test_our_own_routes_tell_of_everything_but_what_was_said(start_daemon):
    async with start_daemon() as running, running.http() as http:
        for path, body in BODIES.items():
            await http.post(path, json=body(SECRET))
        await http.post("/v1/messages", json={**BODIES[ANTHROPIC]("x"), "model": "ecko"})
        found = {
            name: await http.get(f"/overspill/v1/{name}")
            for name in ("status", "capabilities", "models", "policy", "receipts", "events")
        }
    assert {answer.status_code for answer in found.values()} == {200}
    assert not [name for name, answer in found.items() if SECRET in answer.text]
    told = {name: answer.json() for name, answer in found.items()}
    assert told["status"]["totals"]["answers"] == len(BODIES)
    assert told["status"]["totals"]["failures"] == 1
    assert told["status"]["totals"]["tokens_by_route"].keys() == {"device"}
    assert told["capabilities"]["models"][0]["name"] == "echo"
    assert told["capabilities"]["device"]["state"] == "available"
    assert told["models"]["models"][0]["runtime"] == "echo"
    assert len(told["policy"]["sha256"]) == 64
    assert told["receipts"] == {"receipts": []}
    events = told["events"]["events"]
    assert [event["seq"] for event in events] == list(range(1, len(BODIES) + 2))
    assert events[-1]["error"] == "model_not_found"
    assert {event["route"] for event in events[:-1]} == {"device"}


async def test_events_are_followed_and_end_with_the_daemon(start_daemon):
    async with start_daemon() as running, running.http() as http:
        accept = {"Accept": "text/event-stream"}
        async with http.stream("GET", "/overspill/v1/events", headers=accept) as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == ": listening"
            await http.post("/v1/completions", json=BODIES["/v1/completions"]("hello"))
            async for line in lines:
                if line.startswith("data: "):
                    break
            assert json.loads(line.removeprefix("data: "))["seq"] == 1
            running.daemon.stop()
            with anyio.fail_after(10):
                assert [line async for line in lines if line] == []


async def test_other_scopes_do_not_open_our_routes(start_daemon):
    async with start_daemon() as running, running.http(tcp=True) as http:
        token = {"Authorization": f"Bearer {running.token()}"}
        for name in ("receipts", "events"):
            answer = await http.get(f"/overspill/v1/{name}", headers=token)
            assert (answer.status_code, code_of(answer)) == (403, "insufficient_scope")
        for name in ("status", "capabilities", "models", "policy"):
            assert (await http.get(f"/overspill/v1/{name}", headers=token)).status_code == 200
            assert (await http.get(f"/overspill/v1/{name}")).status_code == 401
        answer = await http.get("/overspill/v1/events?after=-1", headers=token)
        assert answer.status_code == 403
