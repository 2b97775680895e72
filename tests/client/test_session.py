"""Routing, falling back and telling: what an app sees of one request."""

import pytest

from overspill import AsyncOverspill
from overspill.config import load_settings
from overspill.errors import (
    BusyError,
    ContextOverflow,
    EngineDied,
    InvalidRequest,
    ModelNotFound,
    PolicyRefusal,
    StreamBroken,
)
from overspill.testing import FakeEngine
from overspill.types.chat import FinishReason
from overspill.types.route import Route, RouteReason

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(tmp_path):
    return load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})


async def test_an_answer_says_who_gave_it_and_that_nothing_left(settings):
    async with AsyncOverspill("t", settings=settings, device=FakeEngine("Paris it is.")) as ai:
        reply = await ai.chat("Capital of France?")
    assert reply.text == "Paris it is."
    assert reply.model == "fake"
    assert reply.finish_reason is FinishReason.STOP
    assert reply.usage.completion_tokens == 3
    assert (reply.route.route, reply.route.bytes_sent) == (Route.DEVICE, 0)
    assert reply.receipt is None
    assert reply.ttft_s is not None
    assert reply.ttft_s <= reply.total_s


async def test_every_piece_carries_the_route_and_only_the_last_an_end(settings):
    async with AsyncOverspill("t", settings=settings, device=FakeEngine("one two")) as ai:
        pieces = [piece async for piece in ai.stream("x")]
    assert [p.text for p in pieces] == ["one", " two", ""]
    assert {p.route.route for p in pieces} == {Route.DEVICE}
    assert [p.finish is not None for p in pieces] == [False, False, True]


async def test_an_apps_own_requests_share_prefixes_and_carry_adapter_and_draft(settings):
    device = FakeEngine("one")
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        await ai.chat("x")
        await ai.chat("x", adapter="poet", draft="one two")
    plain, asked = device.requests
    assert (plain.app, plain.adapter, plain.draft) == ("t", None, "")
    assert (asked.adapter, asked.draft) == ("poet", "one two")
    # The engine keys them by app: with whom else they share is nobody.
    assert plain.cache_scope is not None


async def test_the_next_decision_knows_what_is_under_way(settings):
    device = FakeEngine("one two three four")
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        meter = ai._own._open.meter
        stream = ai.stream("x")
        await anext(stream)
        with meter.generating(Route.DEVICE) as beside:
            assert beside == 1
        await stream.aclose()
        with meter.generating(Route.DEVICE) as beside:
            assert beside == 0


async def test_leaving_the_stream_cancels_the_engine(settings):
    device = FakeEngine("one two three four")
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        stream = ai.stream("x")
        assert (await anext(stream)).text == "one"
        await stream.aclose()
    assert device.cancelled == 1
    assert device.closed


async def test_an_engine_that_dies_hands_over_what_came(settings):
    device = FakeEngine("one two three", error=EngineDied("The worker is gone."), error_after=2)
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        with pytest.raises(EngineDied) as caught:
            await ai.chat("x")
    assert caught.value.partial == "one two"


async def test_a_prompt_over_the_context_is_an_error_with_both_numbers(settings):
    device = FakeEngine(context=10)
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        with pytest.raises(ContextOverflow) as caught:
            await ai.chat("word " * 12, max_tokens=4)
    assert (caught.value.prompt_tokens, caught.value.context) == (12, 10)
    assert not device.requests


async def test_a_plan_generates_nothing(settings):
    device = FakeEngine()
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        plan = await ai.plan("Hello", max_tokens=5)
    assert (plan.route, plan.model, plan.bytes_leaving) == (Route.DEVICE, "fake", 0)
    assert plan.would_leave == "nothing"
    assert plan.decision.stages
    assert not device.requests


async def test_an_unknown_model_is_refused_with_the_known_ones(settings):
    async with AsyncOverspill("t", settings=settings, device=FakeEngine(name="brook")) as ai:
        with pytest.raises(ModelNotFound, match="brook"):
            await ai.chat("x", model="gpt-9")
        assert (await ai.chat("x", model="brook")).route.reason is RouteReason.PINNED


async def test_tools_that_the_only_model_cannot_use_are_refused_not_ignored(settings):
    tool = {"type": "function", "function": {"name": "now", "parameters": {}}}
    async with AsyncOverspill("t", settings=settings, device=FakeEngine(tools=False)) as ai:
        with pytest.raises(PolicyRefusal, match="tools"):
            await ai.chat("What time is it?", tools=[tool])


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"privacy": "public"}, "privacy"),
        ({"best_of": 2}, "best_of"),
        ({"top_k": 2**40}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 9_999_999_999}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": [1]}, "stop"),
        ({"model": 5}, "model"),
        ({"adapter": 5}, "adapter"),
        ({"draft": None}, "draft"),
        ({"draft": "\ud800"}, "draft"),
        ({"tools": [1]}, "tools"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools"),
    ],
)
async def test_a_bad_option_is_named(settings, options, param):
    async with AsyncOverspill("t", settings=settings, device=FakeEngine()) as ai:
        with pytest.raises(InvalidRequest) as caught:
            await ai.chat("x", **options)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "messages", [5, b"hi", ["hi"], [{"role": "user", "content": 5}], "caf\udce9", [{}]]
)
async def test_messages_that_are_none_are_named(settings, messages):
    async with AsyncOverspill("t", settings=settings, device=FakeEngine()) as ai:
        with pytest.raises(InvalidRequest) as caught:
            await ai.chat(messages)
    assert caught.value.param == "messages"


async def test_a_busy_device_without_another_route_is_a_busy_error(settings):
    device = FakeEngine(error=BusyError("Full.", retry_after_s=1))
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        with pytest.raises(BusyError):
            await ai.chat("x")


async def test_a_device_that_cannot_start_is_an_error_where_there_is_no_cloud(settings):
    device = FakeEngine(start_error=ModelNotFound("No model."))
    with pytest.raises(ModelNotFound):
        async with AsyncOverspill("t", settings=settings, device=device):
            pass


async def test_transport_errors_are_not_trust_errors():
    from overspill.errors import TransportError, TrustError

    assert not issubclass(TrustError, TransportError)
    assert not issubclass(TransportError, TrustError)
    assert issubclass(StreamBroken, TransportError)
