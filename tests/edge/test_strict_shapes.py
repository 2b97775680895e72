"""Every answer and every event by the clients' own types: nothing missing, nothing unknown."""

from __future__ import annotations

import json
from typing import Annotated, get_args, get_origin

import anthropic.types as anthropic_types
import openai.types as openai_types
import pytest
from anthropic.types.shared import ErrorResponse
from openai.types import responses
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, TypeAdapter

pytestmark = pytest.mark.anyio

TEXT = "hello"
CALL = 'call weather {"place": "Oslo"}'
PARAMETERS = {
    "type": "object",
    "properties": {"place": {"type": "string"}},
    "required": ["place"],
    "additionalProperties": False,
}
OURS = {"overspill"}
BEYOND_THE_TYPES = {
    # The Open Responses specification requires these; openai's types left them out.
    "store",
    "presence_penalty",
    "frequency_penalty",
    # openai's published specification requires it of function_call_arguments.done.
    "name",
}


def unknown_fields(value, path="$"):
    """Where a parsed document has what its type does not know."""
    if isinstance(value, BaseModel):
        yield from (f"{path}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from unknown_fields(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from unknown_fields(item, f"{path}[{index}]")


def strictly(kind, document, *, allowed=frozenset()):
    parsed = TypeAdapter(kind).validate_python(document)
    unknown = [p for p in unknown_fields(parsed) if p.rpartition(".")[2] not in allowed]
    assert not unknown, unknown
    return parsed


def members(union):
    """The models of a union, by the type that each says."""
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    return {get_args(m.model_fields["type"].annotation)[0]: m for m in get_args(union)}


def events_of(text):
    """Events of a stream as (name, document); comments are left out."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        if fields:
            found.append((fields.get("event"), fields["data"]))
    return found


async def post(http, path, body):
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer


def chat_body(**more):
    return {"model": "echo", "messages": [{"role": "user", "content": TEXT}], **more}


CHATS = {
    "text": chat_body(),
    "logprobs": chat_body(logprobs=True, top_logprobs=2),
    "cut": chat_body(max_tokens=3),
    "call": {
        "model": "auto",
        "messages": [{"role": "user", "content": CALL}],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}],
    },
}


@pytest.mark.parametrize("name", CHATS)
async def test_chat_completions(start_daemon, name):
    async with start_daemon() as running, running.http() as http:
        whole = (await post(http, "/v1/chat/completions", CHATS[name])).json()
        streamed = {**CHATS[name], "stream": True, "stream_options": {"include_usage": True}}
        text = (await post(http, "/v1/chat/completions", streamed)).text
    strictly(ChatCompletion, whole)
    *chunks, done = events_of(text)
    assert done == (None, "[DONE]")
    for _, data in chunks:
        strictly(ChatCompletionChunk, json.loads(data), allowed=OURS)


async def test_completions(start_daemon):
    body = {"model": "echo", "prompt": TEXT, "max_tokens": 64, "logprobs": 2}
    async with start_daemon() as running, running.http() as http:
        whole = (await post(http, "/v1/completions", body)).json()
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        text = (await post(http, "/v1/completions", streamed)).text
    parsed = strictly(openai_types.Completion, whole)
    assert parsed.choices[0].text == "\necho: hello"
    *chunks, (_, done) = events_of(text)
    documents = [json.loads(data) for _, data in chunks]
    assert done == "[DONE]"
    said = "".join(d["choices"][0]["text"] for d in documents if d["choices"])
    assert said == "\necho: hello"
    for document in documents:
        # As OpenAI's own: null until the last, though the type has no null.
        for choice in document["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        strictly(openai_types.Completion, document, allowed=OURS)
    offsets = [
        at
        for d in documents
        for choice in d["choices"]
        if choice["logprobs"]
        for at in choice["logprobs"]["text_offset"]
    ]
    assert offsets == list(range(len(TEXT), len(TEXT) + len(said)))


RESPONSES = {
    "text": {"model": "echo", "input": TEXT},
    "settings": {
        "model": "echo",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}],
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "store": False,
    },
    "cut": {"model": "echo", "input": TEXT, "max_output_tokens": 3},
    "schema": {
        "model": "echo",
        "input": TEXT,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": PARAMETERS}},
        "max_output_tokens": 200,
    },
    "call": {
        "model": "echo",
        "input": CALL,
        "tools": [{"type": "function", "name": "weather", "parameters": PARAMETERS}],
    },
    "named": {
        "model": "echo",
        "input": CALL,
        "tools": [{"type": "function", "name": "weather", "parameters": PARAMETERS}],
        "tool_choice": {"type": "function", "name": "weather"},
    },
}


@pytest.mark.parametrize("name", RESPONSES)
async def test_responses(start_daemon, name):
    async with start_daemon() as running, running.http() as http:
        whole = (await post(http, "/v1/responses", RESPONSES[name])).json()
        text = (await post(http, "/v1/responses", {**RESPONSES[name], "stream": True})).text
    strictly(responses.Response, whole, allowed=BEYOND_THE_TYPES)
    kinds = members(responses.ResponseStreamEvent)
    parsed = []
    for event, data in events_of(text):
        document = json.loads(data)
        assert event == document["type"]
        parsed.append(strictly(kinds[event], document, allowed=BEYOND_THE_TYPES))
    assert [event.sequence_number for event in parsed] == list(range(len(parsed)))
    last = json.loads(events_of(text)[-1][1])["response"]
    for response in (whole, last):
        for changing in ("id", "created_at", "completed_at"):
            response.pop(changing)
        for item in response["output"]:
            item.pop("id")
            item.pop("call_id", None)
    whole["usage"]["input_tokens_details"]["cached_tokens"] = 0
    last["usage"]["input_tokens_details"]["cached_tokens"] = 0
    assert whole == last  # whole and streamed are one answer


MESSAGES = {
    "text": {"messages": [{"role": "user", "content": TEXT}]},
    "system": {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": TEXT}]}],
        "stop_sequences": ["ell"],
    },
    "call": {
        "messages": [{"role": "user", "content": CALL}],
        "tools": [{"name": "weather", "input_schema": PARAMETERS}],
    },
    "result": {
        "messages": [
            {"role": "user", "content": CALL},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"place": "Oslo"}}
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
        "tools": [{"name": "weather", "input_schema": PARAMETERS}],
    },
}


@pytest.mark.parametrize("name", MESSAGES)
async def test_messages(start_daemon, name):
    body = {"model": "echo", "max_tokens": 100, **MESSAGES[name]}
    async with start_daemon() as running, running.http() as http:
        whole = (await post(http, "/v1/messages", body)).json()
        text = (await post(http, "/v1/messages", {**body, "stream": True})).text
    strictly(anthropic_types.Message, whole)
    kinds = members(anthropic_types.RawMessageStreamEvent)
    names = []
    for event, data in events_of(text):
        document = json.loads(data)
        assert event == document["type"]
        strictly(kinds[event], document)
        names.append(event)
    assert names[0] == "message_start"
    assert names[1] == "content_block_start"
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]


async def test_models_embeddings_and_counts(start_daemon):
    async with start_daemon() as running, running.http() as http:
        models = (await http.get("/v1/models")).json()
        one = (await http.get("/v1/models/echo")).json()
        version = {"anthropic-version": "2023-06-01"}
        theirs = (await http.get("/v1/models", headers=version)).json()
        body = {"model": "echo", "messages": [{"role": "user", "content": TEXT}]}
        count = (await post(http, "/v1/messages/count_tokens", body)).json()
        used = (await post(http, "/v1/messages", {**body, "max_tokens": 9})).json()["usage"]
    for model in (*models["data"], one):
        strictly(openai_types.Model, model)
    for model in theirs["data"]:
        strictly(anthropic_types.ModelInfo, model)
    strictly(anthropic_types.MessageTokensCount, count)
    assert count["input_tokens"] == used["input_tokens"] + used["cache_read_input_tokens"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/messages", {}, 400),
        ("/v1/messages", {"model": "ecko", "max_tokens": 9, "messages": MESSAGES["text"]}, 400),
        ("/v1/messages/other", {}, 404),
        ("/v1/chat/completions", {}, 400),
        ("/v1/responses", {"model": "ecko", "input": "x"}, 404),
        ("/v1/completions", {"model": "echo"}, 400),
        ("/v1/embeddings", {}, 400),
    ],
)
async def test_errors_are_in_the_dialects_shape(start_daemon, path, body, status):
    async with start_daemon() as running, running.http() as http:
        answer = await http.post(path, json=body)
    assert answer.status_code == status
    if path.startswith("/v1/messages"):
        error = strictly(ErrorResponse, answer.json())
        assert error.request_id == answer.headers["request-id"]
    else:
        assert answer.json().keys() == {"error"}
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.headers["x-overspill-code"]
