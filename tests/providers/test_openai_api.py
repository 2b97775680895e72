"""A third party's API as an engine: what is sent, what is read, and each way in which it fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from overspill.errors import (
    BusyError,
    ConfigurationError,
    ConnectFailed,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    OverspillError,
    StreamBroken,
    UnsupportedOption,
)
from overspill.providers.openai_api import OpenAIEngine, ProviderOptions
from overspill.types.card import ModelCard
from overspill.types.chat import (
    Chunk,
    FinishReason,
    Grammar,
    Image,
    Message,
    Request,
    Sampling,
    Tool,
    ToolCall,
    merge_chunks,
)

pytestmark = pytest.mark.anyio
CARD = ModelCard("big", 8192, "openai", tools=True, json_schema=True, modalities=("text", "image"))
ASK = Request((Message("user", "hello"),))


def engine_at(url: str) -> OpenAIEngine:
    return OpenAIEngine(ProviderOptions("maker", url, CARD, "k-123"))


async def answer(provider: Any, request: Request = ASK) -> Chunk:
    return merge_chunks([chunk async for chunk in engine_at(provider.url).generate(request)])


async def test_an_answer_streams_and_names_who_answered(provider: Any) -> None:
    whole = await answer(provider)
    assert whole.text == "Hello."
    assert whole.finish is not None
    assert (whole.finish.reason, whole.finish.model) == (FinishReason.STOP, "big-1")
    assert (whole.finish.usage.prompt_tokens, whole.finish.usage.completion_tokens) == (7, 2)
    ((path, headers, body),) = provider.received
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer k-123"
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert (body["model"], body["stream"], body["temperature"]) == ("big", True, 0.0)


async def test_everything_that_the_protocol_has_a_word_for_is_sent(provider: Any) -> None:
    call = ToolCall("c1", "clock", '{"zone": "x"}')
    request = Request(
        (
            Message("system", "brief"),
            Message("user", "see here", images=(Image(b"\x89PNG", "image/png", at=4),)),
            Message("assistant", "", (call,)),
            Message("tool", "noon", tool_call_id="c1"),
        ),
        max_tokens=9,
        sampling=Sampling(temperature=0.5, top_p=0.9, seed=3),
        stop=("END",),
        tools=(Tool("clock", "tells", {"type": "object"}, strict=True),),
        tool_name="clock",
        parallel_tool_calls=False,
        json_schema={"type": "object"},
    )
    await answer(provider, request)
    body = provider.received[0][2]
    assert body["messages"][1]["content"] == [
        {"type": "text", "text": "see "},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
        {"type": "text", "text": "here"},
    ]
    assert body["messages"][2]["tool_calls"][0]["function"]["name"] == "clock"
    assert body["messages"][3]["tool_call_id"] == "c1"
    assert body["tool_choice"] == {"type": "function", "function": {"name": "clock"}}
    assert body["tools"][0]["function"]["strict"] is True
    assert body["parallel_tool_calls"] is False
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (body["max_tokens"], body["top_p"], body["seed"], body["stop"]) == (9, 0.9, 3, ["END"])


@pytest.mark.parametrize(
    "option",
    [
        {"grammar": Grammar("regex", "a")},
        {"prefix": "It"},
        {"raw": True},
        {"adapter": "x"},
        {"top_logprobs": 0},
        {"sampling": Sampling(top_k=3)},
        {"sampling": Sampling(min_p=0.1)},
        {"sampling": Sampling(repeat_penalty=1.1)},
        {"sampling": Sampling(logit_bias={1: 2.0})},
    ],
)
async def test_what_it_cannot_honour_is_refused_before_anything_is_sent(
    provider: Any, option: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedOption):
        await answer(provider, replace(ASK, **option))
    assert provider.connections == 0


async def test_tool_calls_come_in_pieces_and_whole(provider: Any) -> None:
    def piece(**fields: Any) -> dict[str, Any]:
        event: dict[str, Any] = provider.event({"tool_calls": [{"index": 0, **fields}]})
        return event

    provider.events = [
        piece(id="c9", function={"name": "clock", "arguments": '{"z'}),
        piece(function={"arguments": '": 1}'}),
        provider.event({}, "tool_calls"),
    ]
    whole = await answer(provider)
    assert whole.tool_calls == (ToolCall("c9", "clock", '{"z": 1}'),)
    assert "".join(d.arguments for d in whole.tool_call_deltas) == '{"z": 1}'
    assert whole.finish is not None
    assert whole.finish.reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidRequest),
        (401, ConfigurationError),
        (403, ConfigurationError),
        (404, ModelNotFound),
        (429, BusyError),
        (503, BusyError),
        (500, EngineError),
        (307, EngineError),
    ],
)
async def test_a_refusal_is_typed_and_quotes_neither_key_nor_prompt(
    provider: Any, status: int, error: type[OverspillError]
) -> None:
    provider.status = status
    provider.headers = {"Retry-After": "4", "Location": "http://127.0.0.1:1/"}
    with pytest.raises(error) as caught:
        await answer(provider)
    assert "k-123" not in str(caught.value)
    assert "hello" not in str(caught.value)
    assert len(provider.received) == 1
    if isinstance(caught.value, BusyError):
        assert caught.value.retry_after_s == 4.0


async def test_an_answer_without_an_end_is_an_error(provider: Any) -> None:
    provider.cut = True
    provider.events = [provider.event({"content": "Hel"})]
    with pytest.raises(StreamBroken):
        await answer(provider)


@pytest.mark.parametrize("event", ["{", "[]", {"error": {"message": "hello"}}, {"choices": 3}])
async def test_what_is_no_completion_is_an_error(provider: Any, event: Any) -> None:
    provider.events = [event]
    with pytest.raises(EngineError) as caught:
        await answer(provider)
    assert "hello" not in str(caught.value)


async def test_a_filter_is_no_end(provider: Any) -> None:
    provider.say("x", reason="content_filter")
    with pytest.raises(EngineError, match="content_filter"):
        await answer(provider)


async def test_nobody_there(provider: Any) -> None:
    with pytest.raises(ConnectFailed):
        [chunk async for chunk in engine_at("http://127.0.0.1:1/v1").generate(ASK)]


@pytest.mark.parametrize("url", ["http://api.example/v1", "ftp://127.0.0.1", "api.example", ""])
def test_only_loopback_goes_without_tls(url: str) -> None:
    with pytest.raises(ConfigurationError, match="https"):
        ProviderOptions("maker", url, CARD, "k")
    assert "k-123" not in repr(ProviderOptions("maker", "https://x.example", CARD, "k-123"))
