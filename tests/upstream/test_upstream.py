"""An upstream as an engine: what is sent, what is refused, and each way in which it fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

from overspill.errors import (
    BusyError,
    ConfigurationError,
    ConnectFailed,
    ContextOverflow,
    DeadlineExceeded,
    EngineDied,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    OverspillError,
    UnsupportedOption,
)
from overspill.types.chat import (
    Chunk,
    Grammar,
    Message,
    Request,
    Sampling,
    Tool,
    Watch,
    merge_chunks,
)
from overspill_cloud.upstream.engine import UpstreamLimits

pytestmark = pytest.mark.anyio
ASK = Request((Message("user", "hello"),), max_tokens=4)


async def answer(engine: Any, request: Request = ASK) -> Chunk:
    return merge_chunks([chunk async for chunk in engine.generate(request)])


async def test_an_answer_streams_under_the_served_name(
    upstream_on: Any, open_upstream: Any
) -> None:
    async with open_upstream(upstream_on.address) as engine:
        whole = await answer(engine)
        assert whole.text == "w0 w1 w2 "
        assert whole.finish.model == "served"
        usage = whole.finish.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (8, 3)
        assert (engine.card.context, engine.card.runtime) == (64, "upstream/vllm")
    (body,) = upstream_on.chats
    assert body["model"] == "big"


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        ("vllm", {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "top_p": 1.0}),
        ("sglang", {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "top_p": 1.0}),
        ("somebody", {"top_p": 1.0, "temperature": 0.0}),
    ],
)
async def test_nothing_is_left_to_a_servers_own_defaults(
    upstream: Any, open_upstream: Any, owner: str, words: dict[str, Any]
) -> None:
    upstream.owner = owner
    async with open_upstream(upstream.address) as engine:
        await answer(engine)
    assert {name: upstream.chats[0].get(name) for name in words} == words


async def test_each_request_to_vllm_has_a_prefix_cache_of_its_own(
    upstream: Any, open_upstream: Any
) -> None:
    async with open_upstream(upstream.address) as engine:
        await answer(engine, replace(ASK, id="a"))
        await answer(engine, replace(ASK, id="b"))
    assert [body["cache_salt"] for body in upstream.chats] == ["a", "b"]


async def test_what_cannot_be_promised_stands_in_the_card(
    upstream: Any, open_upstream: Any
) -> None:
    upstream.owner = "sglang"
    async with open_upstream(upstream.address) as engine:
        notes = " ".join(engine.card.notes)
    assert "draft" in notes
    assert "no cache per app" in notes


async def test_the_answer_goes_on_from_its_beginning(upstream: Any, open_upstream: Any) -> None:
    async with open_upstream(upstream.address) as engine:
        await answer(engine, replace(ASK, prefix="It was"))
    (body,) = upstream.chats
    assert body["messages"][-1] == {"role": "assistant", "content": "It was"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


async def test_a_named_tool_is_the_only_one_and_has_to_be_called(
    upstream: Any, open_upstream: Any
) -> None:
    tools = (Tool("a"), Tool("b"))
    async with open_upstream(upstream.address) as engine:
        await answer(engine, replace(ASK, tools=tools, tool_name="b"))
    (body,) = upstream.chats
    assert [tool["function"]["name"] for tool in body["tools"]] == ["b"]
    assert body["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("owner", "option", "param"),
    [
        ("vllm", {"watch": Watch(1)}, "watch"),
        ("vllm", {"grammar": Grammar("regex", "a")}, "grammar"),
        ("vllm", {"raw": True}, "raw"),
        ("vllm", {"adapter": "x"}, "adapter"),
        ("vllm", {"top_logprobs": 0}, "top_logprobs"),
        ("vllm", {"tools": (Tool("f", strict=True),)}, "tools"),
        ("vllm", {"json_schema": {"type": "object", "not": {}}}, "json_schema"),
        ("vllm", {"json_schema": {"properties": {"a": {"pattern": "b"}}}}, "json_schema"),
        ("somebody", {"sampling": Sampling(top_k=3)}, "top_k"),
        ("somebody", {"prefix": "x"}, "prefix"),
        ("somebody", {"tools": (Tool("f"),)}, "tools"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name_and_nothing_is_sent(
    upstream: Any, open_upstream: Any, owner: str, option: dict[str, Any], param: str
) -> None:
    upstream.owner = owner
    async with open_upstream(upstream.address) as engine:
        with pytest.raises(UnsupportedOption) as caught:
            await answer(engine, replace(ASK, **option))
    assert caught.value.param == param
    assert upstream.chats == []


async def test_a_schema_that_is_enforced_everywhere_is_sent(
    upstream: Any, open_upstream: Any
) -> None:
    inner = {"type": "array", "items": {"anyOf": [{"type": "string"}, {"enum": [1]}]}}
    schema = {"type": "object", "properties": {"not": inner}, "required": ["not"]}
    async with open_upstream(upstream.address) as engine:
        await answer(engine, replace(ASK, json_schema=schema))
    assert upstream.chats[0]["response_format"]["json_schema"]["schema"] == schema


async def test_what_does_not_fit_is_counted_and_refused_with_the_numbers(
    upstream: Any, open_upstream: Any
) -> None:
    upstream.counts = 61
    async with open_upstream(upstream.address) as engine:
        with pytest.raises(ContextOverflow) as caught:
            await answer(engine)
    assert (caught.value.prompt_tokens, caught.value.context) == (61, 64)
    assert upstream.chats == []


async def test_leaving_closes_the_connection(upstream: Any, open_upstream: Any) -> None:
    upstream.hangs = True
    async with open_upstream(upstream.address) as engine:
        stream = engine.generate(ASK)
        assert (await anext(stream)).text == "w0 "
        assert (await engine.health()).active == 1
        await stream.aclose()
        assert await anyio.to_thread.run_sync(upstream.closed.wait, 10)
        assert (await engine.health()).active == 0


@pytest.mark.parametrize("option", ["deadline_s", "first_token_s"])
async def test_a_deadline_ends_the_wait_and_the_connection(
    upstream: Any, open_upstream: Any, option: str
) -> None:
    upstream.hangs, upstream.words = True, 0
    async with open_upstream(upstream.address) as engine:
        with pytest.raises(DeadlineExceeded):
            await answer(engine, replace(ASK, **{option: 0.05}))
        assert await anyio.to_thread.run_sync(upstream.closed.wait, 10)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidRequest),
        (401, ConfigurationError),
        (404, EngineError),
        (429, BusyError),
        (503, BusyError),
        (500, EngineError),
    ],
)
async def test_a_refusal_is_typed_and_does_not_quote_the_prompt(
    upstream: Any, open_upstream: Any, status: int, error: type[OverspillError]
) -> None:
    upstream.status = status
    async with open_upstream(upstream.address) as engine:
        with pytest.raises(error) as caught:
            await answer(engine)
    assert "hello" not in str(caught.value)


async def test_an_answer_by_another_model_is_an_error(upstream: Any, open_upstream: Any) -> None:
    upstream.answers_as = "small"
    async with open_upstream(upstream.address) as engine:
        with pytest.raises(EngineError, match="another model"):
            await answer(engine)


async def test_a_model_that_is_not_served_is_named_beside_those_that_are(
    upstream: Any, open_upstream: Any
) -> None:
    engine = open_upstream(replace(upstream.address, model="huge"))
    with pytest.raises(ModelNotFound, match="big"):
        await engine.start()


async def test_an_upstream_without_a_context_length_is_refused(
    upstream: Any, open_upstream: Any
) -> None:
    upstream.context = 0
    with pytest.raises(ConfigurationError, match="context"):
        await open_upstream(upstream.address).start()


async def test_an_upstream_that_is_not_up_cannot_be_reached(
    open_upstream: Any, upstream: Any, tmp_path: Any
) -> None:
    engine = open_upstream(replace(upstream.address, uds=str(tmp_path / "none.sock")))
    with pytest.raises(ConnectFailed):
        await engine.start()


async def test_health_is_the_upstreams_and_that_answers_move(
    upstream: Any, open_upstream: Any
) -> None:
    engine = open_upstream(upstream.address, limits=UpstreamLimits(stuck_after_s=0.0))
    assert not (await engine.health()).ok
    async with engine:
        assert (await engine.health()).ok
        upstream.health = 503
        assert not (await engine.health()).ok
        upstream.health = 200
        stream = engine.generate(ASK)
        await anext(stream)
        stuck = await engine.health()
        assert not stuck.ok
        assert "nothing" in stuck.detail
        await stream.aclose()
    assert not (await engine.health()).ok


async def test_an_upstream_that_dies_is_an_engine_that_died(
    upstream: Any, open_upstream: Any
) -> None:
    async with open_upstream(upstream.address) as engine:
        await answer(engine)
        engine._address = replace(engine._address, base_url="http://127.0.0.1:9")
        engine._endpoint = replace(engine._endpoint, base_url="http://127.0.0.1:9")
        with pytest.raises(EngineDied):
            await answer(engine)
