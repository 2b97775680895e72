"""OpenAI's own client against the daemon: whole and streamed, on both transports."""

from __future__ import annotations

import json

import openai
import psutil
import pytest
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from overspill.engines.echo import EchoOptions
from overspill.engines.options import SchedulerOptions
from overspill_edge.tokens import Scope

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


@pytest.fixture(params=["unix", "tcp"])
def transport(request):
    return request.param


def client_of(running, transport):
    return running.openai(None if transport == "unix" else running.token())


async def test_a_whole_answer_has_the_dialects_shape(start_daemon, transport):
    async with start_daemon() as running, client_of(running, transport) as ai:
        raw = await ai.chat.completions.with_raw_response.create(model="echo", messages=HELLO)
        answer = raw.parse()
        body = json.loads(raw.content)
    assert answer.choices[0].message.content == "echo: hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].index == 0
    assert answer.model == "echo"
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.system_fingerprint.startswith("fp_")
    assert answer.usage.completion_tokens == len("echo: hello") + 1 or (
        answer.usage.completion_tokens == len("echo: hello")
    )
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert body["choices"][0]["logprobs"] is None
    assert body["choices"][0]["message"]["refusal"] is None
    assert "overspill" not in body
    assert raw.headers["x-overspill-route"] == "device"
    assert raw.headers["x-overspill-reason"]
    assert raw.headers["x-overspill-receipt"] == "none"
    assert answer.id == f"chatcmpl-{raw.headers['x-request-id']}"


async def test_a_stream_is_role_then_text_then_reason_then_usage(start_daemon, transport):
    async with start_daemon() as running, client_of(running, transport) as ai:
        stream = await ai.chat.completions.create(
            model="auto", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        assert stream.response.headers["x-overspill-route"] == "device"
        chunks = [chunk async for chunk in stream]
    first, *middle, last, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content for c in middle) == "echo: hello"
    assert [c.choices[0].finish_reason for c in (first, *middle)] == [None] * (1 + len(middle))
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].delta.content is None
    assert usage.choices == []
    assert usage.usage.total_tokens == usage.usage.prompt_tokens + usage.usage.completion_tokens
    assert all(chunk.usage is None for chunk in (first, *middle, last))
    assert len({(c.id, c.created, c.model, c.object, c.system_fingerprint) for c in chunks}) == 1
    assert usage.model == "echo"
    assert usage.overspill["route"] == "device"
    assert usage.overspill["bytes_sent"] == 0


async def test_without_include_usage_a_stream_has_no_usage_and_ends_with_done(start_daemon):
    async with start_daemon() as running, running.http() as http:
        body = {"model": "echo", "messages": HELLO, "stream": True}
        answer = await http.post("/v1/chat/completions", json=body)
    lines = [line for line in answer.text.split("\n\n") if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


async def test_text_beyond_ascii_arrives_whole(start_daemon):
    text = "naïve 🦉 漢字 \u2028 end"
    async with start_daemon() as running, running.openai() as ai:
        stream = await ai.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": text}], stream=True
        )
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(parts) == f"echo: {text}"


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_are_called_in_the_dialects_shape(start_daemon, stream):
    messages = [{"role": "user", "content": 'call weather {"place": "Oslo"}'}]
    async with start_daemon() as running, running.openai() as ai:
        answer = await ai.chat.completions.create(
            model="echo", messages=messages, tools=[WEATHER], stream=stream
        )
        if stream:
            chunks = [chunk async for chunk in answer]
            deltas = [d for c in chunks for d in c.choices[0].delta.tool_calls or ()]
            assert {delta.index for delta in deltas} == {0}
            assert not any(delta.id or delta.function.name for delta in deltas[1:])
            assert len(deltas) > 3  # the arguments come as they are written
            for delta in deltas[1:]:
                deltas[0].function.arguments += delta.function.arguments
            calls, reason = deltas[:1], chunks[-1].choices[0].finish_reason
        else:
            calls = answer.choices[0].message.tool_calls
            reason = answer.choices[0].finish_reason
            assert answer.choices[0].message.content is None
    assert reason == "tool_calls"
    assert calls[0].type == "function"
    assert calls[0].id
    assert calls[0].function.name == "weather"
    assert json.loads(calls[0].function.arguments) == {"place": "Oslo"}


async def test_a_conversation_with_a_tools_result_goes_on(start_daemon):
    async with start_daemon() as running, running.openai() as ai:
        ask = [{"role": "user", "content": 'call weather {"place": "Oslo"}'}]
        first = await ai.chat.completions.create(model="echo", messages=ask, tools=[WEATHER])
        message = first.choices[0].message
        # The client's own dump of the message, with all its null fields, must be accepted.
        ask += [
            message.model_dump(),
            {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"},
        ]
        second = await ai.chat.completions.create(model="echo", messages=ask, tools=[WEATHER])
    assert second.choices[0].message.content == "echo: rain"


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_name_token_bytes_and_alternatives(start_daemon, stream):
    options = {"logprobs": True, "top_logprobs": 2, "max_tokens": 5}
    async with start_daemon() as running, running.openai() as ai:
        answer = await ai.chat.completions.create(
            model="echo", messages=HELLO, stream=stream, **options
        )
        if stream:
            chunks = [chunk async for chunk in answer]
            tokens = [
                token
                for chunk in chunks
                if chunk.choices[0].logprobs
                for token in chunk.choices[0].logprobs.content
            ]
        else:
            tokens = answer.choices[0].logprobs.content
            assert answer.choices[0].finish_reason == "length"
            assert answer.usage.completion_tokens == 5
    assert "".join(token.token for token in tokens) == "echo:"
    assert [bytes(token.bytes).decode() for token in tokens] == list("echo:")
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
    assert all(token.top_logprobs[0].token == token.token for token in tokens)


async def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(start_daemon):
    async with start_daemon() as running, running.openai() as ai:
        answer = await ai.chat.completions.create(model="echo", messages=HELLO, stop="ll")
    assert answer.choices[0].message.content == "echo: he"
    assert answer.choices[0].finish_reason == "stop"


async def test_a_seed_repeats_a_hot_answer_and_another_does_not(start_daemon):
    async def ask(ai, seed):
        answer = await ai.chat.completions.create(
            model="echo",
            messages=HELLO,
            seed=seed,
            temperature=2.0,
            logprobs=True,
            max_tokens=40,
            logit_bias={str(byte): 12 for byte in range(97, 123)},
        )
        return answer.choices[0].message.content, answer.system_fingerprint

    async with start_daemon() as running, running.openai() as ai:
        assert await ask(ai, 1) == await ask(ai, 1)
        assert await ask(ai, 1) != await ask(ai, 2)


async def test_models_are_listed_and_described(start_daemon, transport):
    async with start_daemon() as running, client_of(running, transport) as ai:
        listed = [model async for model in ai.models.list()]
        assert [model.id for model in listed] == ["auto", "echo"]
        assert all(model.object == "model" and model.owned_by for model in listed)
        assert (await ai.models.retrieve("echo")).id == "echo"
        with pytest.raises(openai.NotFoundError):
            await ai.models.retrieve("nothing")


async def test_an_unknown_model_is_404_with_suggestions_never_what_is_loaded(start_daemon):
    async with start_daemon() as running, running.openai() as ai:
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError, match="Did you mean echo") as caught:
                await ai.chat.completions.create(model="ecko", messages=HELLO, stream=stream)
            assert caught.value.code == "model_not_found"
            assert caught.value.param == "model"
        assert running.backend.steps == 0


async def test_a_prompt_over_the_context_is_400_with_both_numbers(start_daemon):
    started = start_daemon(echo=EchoOptions(context_tokens=64))
    async with started as running, running.openai() as ai:
        with pytest.raises(openai.BadRequestError) as caught:
            await ai.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": "x" * 100}], stream=True
            )
    error = caught.value.body
    assert error["code"] == "context_length_exceeded"
    assert error["type"] == "invalid_request_error"
    assert error["context"] == 64
    assert error["prompt_tokens"] > 100


async def test_a_request_may_tighten_privacy_and_not_loosen_it(start_daemon):
    async with start_daemon() as running, running.http() as http:
        body = {"model": "echo", "messages": HELLO}
        tight = await http.post(
            "/v1/chat/completions", json=body, headers={"X-Overspill-Privacy": "device"}
        )
        own = {**body, "overspill": {"privacy": "any"}}
        loose = await http.post("/v1/chat/completions", json=own)
        wrong = await http.post(
            "/v1/chat/completions", json=body, headers={"X-Overspill-Privacy": "none"}
        )
    assert tight.status_code == 200
    assert loose.json()["overspill"]["route"] == "device"
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "privacy"


async def test_a_plan_says_where_and_why_and_generates_nothing(start_daemon):
    async with start_daemon() as running, running.http() as http:
        body = {"model": "auto", "messages": HELLO}
        plan = (await http.post("/overspill/v1/plan", json=body)).json()
        status = (await http.get("/overspill/v1/status")).json()
        assert running.backend.steps == 0
    assert plan["route"] == "device"
    assert plan["reason"]
    assert plan["prompt_tokens"] > 0
    assert plan["bytes_leaving"] == 0
    assert all({"stage", "code"} <= stage.keys() for stage in plan["stages"])
    assert status["models"][0]["name"] == "echo"
    assert (status["active"], status["waiting"]) == (0, 0)


async def test_a_token_names_the_app_and_the_unix_peer_its_program(start_daemon, caplog):
    caplog.set_level("INFO", "overspill_edge")
    async with start_daemon() as running:
        token = running.token((Scope.INFER,), app="notes")
        for key in (None, token):
            async with running.openai(key) as ai:
                await ai.chat.completions.create(model="echo", messages=HELLO)
    lines = [r.getMessage() for r in caplog.records if "ChatCompletions" in r.getMessage()]
    assert f"app={psutil.Process().name()!r}" in lines[0]
    assert "app='notes'" in lines[1]
    assert all("status=200" in line and "route=device" in line for line in lines)


def forbidding(model, document):
    """Validate as a strict client would: exact types, and no key that the dialect lacks."""
    return model.model_validate(document, strict=True, extra="forbid")


@pytest.mark.parametrize(
    "options", [{}, {"logprobs": True, "top_logprobs": 1}, {"tools": [WEATHER]}]
)
async def test_strict_validators_pass(start_daemon, options):
    text = 'call weather {"place": "Oslo"}' if "tools" in options else "hello"
    body = {"model": "echo", "messages": [{"role": "user", "content": text}], **options}
    streamed = {**body, "stream": True}
    async with start_daemon() as running, running.http() as http:
        whole = (await http.post("/v1/chat/completions", json=body)).json()
        stream = (await http.post("/v1/chat/completions", json=streamed)).text
        models = (await http.get("/v1/models")).json()
    assert forbidding(ChatCompletion, whole).choices
    lines = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    for line in lines[:-1]:
        assert forbidding(ChatCompletionChunk, json.loads(line)).choices
    assert models["object"] == "list"
    assert [forbidding(Model, model).object for model in models["data"]] == ["model", "model"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_schema_is_held_to_or_refused_by_its_name(start_daemon, stream):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body = {"model": "echo", "messages": HELLO, "response_format": form, "stream": stream}
    async with start_daemon() as running, running.http() as http:
        answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    if stream:
        events = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: {")]
        text = "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events)
    else:
        text = answer.json()["choices"][0]["message"]["content"]
    assert isinstance(json.loads(text)["a"], int)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"not": {}}},
                }
            },
            "response_format",
        ),
        ({"overspill": {"grammar": {"syntax": "regex", "text": "("}}}, "overspill.grammar"),
    ],
)
async def test_what_cannot_be_held_is_refused_by_its_name(start_daemon, asked, param):
    body = {"model": "echo", "messages": HELLO, **asked}
    async with start_daemon() as running, running.http() as http:
        answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_a_required_tool_is_called_once_with_strict_arguments(start_daemon):
    tool = {
        "type": "function",
        "function": {
            "name": "pick",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"n": {"enum": [1, 2]}},
                "required": ["n"],
                "additionalProperties": False,
            },
        },
    }
    async with start_daemon() as running, running.openai() as ai:
        answer = await ai.chat.completions.create(
            model="echo",
            messages=HELLO,
            tools=[tool],
            tool_choice={"type": "function", "function": {"name": "pick"}},
            parallel_tool_calls=False,
        )
    (call,) = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["n"] in (1, 2)
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_an_answer_keeps_to_a_grammar(start_daemon):
    grammar = {"syntax": "lark", "text": 'start: "yes" | "no"'}
    async with start_daemon() as running, running.openai() as ai:
        answer = await ai.chat.completions.create(
            model="echo", messages=HELLO, extra_body={"overspill": {"grammar": grammar}}
        )
    assert answer.choices[0].message.content in ("yes", "no")


async def test_a_large_prompt_is_read_beside_the_streams_of_others(start_daemon):
    text = "z" * 200_000
    started = start_daemon(echo=EchoOptions(context_tokens=300_000))
    async with started as running, running.openai() as ai:
        answer = await ai.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": text}], max_tokens=8
        )
    assert answer.choices[0].message.content == "echo: zz"
    assert answer.usage.prompt_tokens > 200_000


@pytest.mark.parametrize("parts", [False, True])
async def test_a_prediction_is_checked_and_never_changes_the_answer(start_daemon, parts):
    guess = "echo: hello, and more that is not said"
    content = [{"type": "text", "text": guess}] if parts else guess
    async with start_daemon(scheduler=SchedulerOptions(speculation="always")) as running:
        async with running.openai() as ai:
            plain = await ai.chat.completions.create(model="echo", messages=HELLO)
            answer = await ai.chat.completions.create(
                model="echo",
                messages=HELLO,
                prediction={"type": "content", "content": content},
            )
        steps = running.backend.steps
    assert answer.choices[0].message.content == plain.choices[0].message.content == "echo: hello"
    none, counted = plain.usage.completion_tokens_details, answer.usage.completion_tokens_details
    assert (none.accepted_prediction_tokens, none.rejected_prediction_tokens) == (0, 0)
    assert counted.accepted_prediction_tokens >= len("echo: hello") - 2
    assert counted.rejected_prediction_tokens >= 1
    # The plain one took a step for each byte.
    assert steps < 2 * len("echo: hello")


async def test_an_adapter_is_chosen_by_name(start_daemon):
    async with (
        start_daemon(echo=EchoOptions(adapters=("poet",))) as running,
        running.openai() as ai,
    ):
        answer = await ai.chat.completions.create(
            model="echo", messages=HELLO, extra_body={"overspill": {"adapter": "poet"}}
        )
        with pytest.raises(openai.BadRequestError) as caught:
            await ai.chat.completions.create(
                model="echo", messages=HELLO, extra_body={"overspill": {"adapter": "cook"}}
            )
    assert caught.value.param == "overspill.adapter"
    assert "poet" in caught.value.message
    assert answer.choices[0].message.content == "echo[poet]: hello"
