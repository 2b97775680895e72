"""The real llama-server as an upstream, alone and behind the sealed service."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from overspill.errors import ContextOverflow
from overspill.identity.keys import SoftwareKey
from overspill.remote import RemoteEngine
from overspill.transport.grpc import GrpcTransport
from overspill.trust.policy import parse_policy
from overspill.types.chat import Chunk, FinishReason, Message, Request, Sampling, merge_chunks
from overspill_cloud.app import ModelSpec, NodeOptions, serve
from overspill_cloud.client_policy import client_policy
from overspill_cloud.store import Store

pytestmark = pytest.mark.anyio
ASK = Request((Message("user", "Tell me of a river."),), max_tokens=12)
FAR = 1 << 40


async def answer(engine: Any, request: Request) -> Chunk:
    return merge_chunks([chunk async for chunk in engine.generate(request)])


@pytest.fixture
async def engine(llama_server: Any, open_upstream: Any) -> Any:
    async with open_upstream(llama_server) as running:
        yield running


async def test_it_says_what_it_is(engine: Any) -> None:
    assert engine.card.runtime == "upstream/llama-server"
    assert engine.card.context == 512
    assert engine.sequences == 2
    assert engine.card.json_schema
    assert (await engine.health()).ok


async def test_greedy_answers_repeat_and_count(engine: Any) -> None:
    one, other = await asyncio.gather(answer(engine, ASK), answer(engine, replace(ASK, id="b")))
    assert one.text == other.text != ""
    assert one.finish.usage.completion_tokens <= 12
    assert one.finish.usage.cached_tokens == 0
    assert one.finish.usage.prompt_tokens == await engine.count_prompt_tokens(ASK)


async def test_nothing_computed_is_shared_between_requests(engine: Any) -> None:
    for n in range(3):
        whole = await answer(engine, replace(ASK, id=str(n), cache_scope="talk"))
        assert whole.finish.usage.cached_tokens == 0


async def test_length_ends_an_answer(engine: Any) -> None:
    whole = await answer(engine, replace(ASK, max_tokens=2))
    assert whole.finish.reason is FinishReason.LENGTH


async def test_log_probs_come_with_token_ids(engine: Any) -> None:
    whole = await answer(engine, replace(ASK, top_logprobs=2, max_tokens=4))
    assert len(whole.logprobs) == whole.finish.usage.completion_tokens
    assert list(whole.token_ids) == [one.token_id for one in whole.logprobs]
    for one in whole.logprobs:
        assert len(one.top) == 2
        assert one.top[0][0] == one.token_id
        assert one.logprob <= 0
    bare = await answer(engine, replace(ASK, top_logprobs=0, max_tokens=4))
    assert [one.top for one in bare.logprobs] == [()] * len(bare.logprobs)
    assert bare.token_ids == whole.token_ids


async def test_a_bias_forbids(engine: Any) -> None:
    first = (await answer(engine, replace(ASK, top_logprobs=0, max_tokens=1))).token_ids[0]
    biased = replace(
        ASK, top_logprobs=0, max_tokens=1, sampling=Sampling(logit_bias={first: -100.0})
    )
    assert (await answer(engine, biased)).token_ids != (first,)


async def test_an_answer_goes_on_where_another_stopped(engine: Any) -> None:
    whole = (await answer(engine, ASK)).text
    begun = whole[: len(whole) // 2]
    rest = (await answer(engine, replace(ASK, prefix=begun, max_tokens=12))).text
    # The beginning is not said again; where it was cut inside a token the rest may differ.
    assert not rest.startswith(begun)
    assert rest


async def test_what_is_too_long_is_refused_with_numbers(engine: Any) -> None:
    long = replace(ASK, messages=(Message("user", "far too long " * 400),))
    with pytest.raises(ContextOverflow) as caught:
        await answer(engine, long)
    assert caught.value.prompt_tokens == await engine.count_prompt_tokens(long)
    assert caught.value.context == 512
    with pytest.raises(ContextOverflow):
        await answer(engine, replace(ASK, max_tokens=512))


async def test_leaving_frees_its_slot(engine: Any) -> None:
    for _ in range(6):
        stream = engine.generate(replace(ASK, max_tokens=400, sampling=Sampling(1.0, seed=1)))
        await anext(stream)
        await stream.aclose()
    assert (await answer(engine, ASK)).text


async def test_a_schema_is_kept(engine: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"]}
    whole = await answer(engine, replace(ASK, json_schema=schema, max_tokens=60))
    assert '"a":7' in whole.text.replace(" ", "").replace("\n", "")


async def test_a_device_gets_its_answer_sealed_and_knows_what_answered(
    llama_server: Any, tmp_path: Path
) -> None:
    spec = ModelSpec("river", f"upstream:unix:{llama_server.uds}#brook")
    options = NodeOptions((spec,), f"unix:{tmp_path}/n.sock", tmp_path / "state")
    async with serve(options, log_to=io.StringIO()) as node:
        policy = parse_policy(client_policy("dev", options.state, [spec]))
        client = RemoteEngine(GrpcTransport(node.listen), policy, SoftwareKey.generate(FAR))
        store = Store(options.state)
        await client.enroll(store.new_code(FAR))
        store.close()
        async with client:
            whole = await answer(client, ASK)
            (card,) = await client.cards()
    assert whole.text
    assert whole.finish.model == "river"
    assert whole.finish.receipt
    assert card.runtime == "upstream/llama-server"
