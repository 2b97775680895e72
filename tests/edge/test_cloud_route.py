"""The daemon in front of a real node: what its clients are told of an answer from elsewhere."""

from __future__ import annotations

import base64

import openai
import pytest

from overspill import verify_receipt
from overspill.state.receipts import ReceiptStore

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello there"}]
IBAN = [{"role": "user", "content": "My account is DE89 3704 0044 0532 0130 00, is it valid?"}]


async def test_a_whole_answer_names_route_model_and_a_receipt_that_verifies(node_at, start_daemon):
    async with node_at() as (settings, code), start_daemon(settings=settings) as running:
        await running.client.enroll(code)
        async with running.openai() as ai:
            assert [model.id async for model in ai.models.list()] == ["auto", "echo", "river"]
            raw = await ai.chat.completions.with_raw_response.create(
                model="river", messages=HELLO, extra_body={"overspill": {"privacy": "any"}}
            )
    answer = raw.parse()
    assert answer.choices[0].message.content == "echo: Hello there"
    assert answer.model == "river"
    assert raw.headers["x-overspill-route"] == "cloud"
    assert raw.headers["x-overspill-reason"] == "pinned"
    stored = ReceiptStore(settings.places.state / "receipts.sqlite").get(
        raw.headers["x-overspill-receipt"]
    )
    assert verify_receipt(stored).model == "river"
    assert answer.overspill["bytes_sent"] > 0
    assert answer.overspill["receipt_id"] == stored.id


async def test_a_stream_tells_the_route_first_and_the_receipt_last(node_at, start_daemon):
    async with node_at() as (settings, code), start_daemon(settings=settings) as running:
        await running.client.enroll(code)
        async with running.openai() as ai:
            stream = await ai.chat.completions.create(
                model="river",
                messages=HELLO,
                stream=True,
                stream_options={"include_usage": True},
            )
            assert stream.response.headers["x-overspill-route"] == "cloud"
            assert stream.response.headers["x-overspill-receipt"] == "pending"
            chunks = [chunk async for chunk in stream]
    told = chunks[-1].overspill
    stored = ReceiptStore(settings.places.state / "receipts.sqlite").get(told["receipt_id"])
    assert base64.b64decode(told["receipt"]) == stored.data
    assert f"chatcmpl-{stored.request_id}" == chunks[0].id


async def test_private_data_that_may_not_leave_is_403(node_at, start_daemon):
    async with node_at() as (settings, code), start_daemon(settings=settings) as running:
        await running.client.enroll(code)
        async with running.openai() as ai:
            with pytest.raises(openai.PermissionDeniedError) as caught:
                await ai.chat.completions.create(model="river", messages=IBAN, stream=True)
            kept = await ai.chat.completions.with_raw_response.create(model="auto", messages=IBAN)
    assert caught.value.code == "refused"
    assert "3704" not in str(caught.value)
    assert kept.headers["x-overspill-route"] == "device"


async def test_a_header_may_only_tighten(node_at, start_daemon):
    async with node_at() as (settings, code), start_daemon(settings=settings) as running:
        await running.client.enroll(code)
        async with running.openai() as ai:
            with pytest.raises(openai.PermissionDeniedError):
                await ai.chat.completions.create(
                    model="river", messages=HELLO, extra_headers={"X-Overspill-Privacy": "device"}
                )
            with pytest.raises(openai.PermissionDeniedError):
                await ai.chat.completions.create(
                    model="river",
                    messages=HELLO,
                    extra_headers={"X-Overspill-Privacy": "attested"},
                    extra_body={"overspill": {"privacy": "any"}},
                )


async def test_a_node_that_does_not_know_the_device_is_502_and_not_worth_a_retry(
    node_at, start_daemon
):
    body = {"model": "river", "messages": HELLO}
    async with (
        node_at() as (settings, _),
        start_daemon(settings=settings) as running,
        running.http() as http,
    ):
        answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "device_rejected"
    assert answer.headers["x-should-retry"] == "false"


async def test_a_node_that_is_gone_is_502(node_at, start_daemon):
    async with node_at() as (settings, _):
        pass
    async with start_daemon(settings=settings) as running, running.openai() as ai:
        with pytest.raises(openai.InternalServerError) as caught:
            await ai.chat.completions.create(model="river", messages=HELLO)
        assert caught.value.status_code == 502
        answer = await ai.chat.completions.with_raw_response.create(model="auto", messages=HELLO)
    assert answer.headers["x-overspill-route"] == "device"
