"""The SDK through the daemon: the same features, the same errors, and a loss that is told."""

from __future__ import annotations

import pytest

from overspill import AsyncOverspill
from overspill.errors import ConnectFailed, ContextOverflow, DaemonRefused, InvalidRequest
from overspill.types.route import Route

pytestmark = pytest.mark.anyio


@pytest.fixture
def through(settings):
    """``through("notes")``: a client that has to use the daemon."""
    return lambda app="notes", **options: AsyncOverspill(
        app, settings=settings, daemon="require", **options
    )


async def test_an_answer_comes_whole_and_in_pieces_with_its_route(start_daemon, through):
    async with start_daemon(), through() as ai:
        assert ai.uses_daemon
        reply = await ai.chat("hello")
        pieces = [piece async for piece in ai.stream("hello")]
    assert reply.text == "".join(piece.text for piece in pieces) == "echo: hello"
    assert reply.route.route is Route.DEVICE
    assert reply.model == "echo"
    assert {piece.route.route for piece in pieces} == {Route.DEVICE}
    assert reply.usage.completion_tokens > 0
    assert reply.route.decision.stages


async def test_plan_models_availability_and_receipts_are_the_daemons(start_daemon, through):
    async with start_daemon() as running, through() as ai:
        plan, own = await ai.plan("hello"), await running.client.plan("hello")
        assert (plan.route, plan.model, plan.prompt_tokens) == (
            own.route,
            own.model,
            own.prompt_tokens,
        )
        assert plan.decision.stages == own.decision.stages
        assert await ai.models() == await running.client.models()
        assert (await ai.availability()).device.value == "available"
        assert await ai.receipts() == ()


async def test_errors_are_the_same_types_with_the_same_numbers(start_daemon, through):
    async with start_daemon(), through() as ai:
        with pytest.raises(ContextOverflow) as caught:
            await ai.chat("x" * 9000)
        assert caught.value.context == 8192
        with pytest.raises(InvalidRequest, match="temperature"):
            await ai.chat("x", temperature=9)


async def test_without_a_daemon_auto_takes_an_engine_of_its_own(settings):
    async with AsyncOverspill("notes", settings=settings) as ai:
        assert not ai.uses_daemon
        assert isinstance(ai.daemon_problem, ConnectFailed)
        assert (await ai.chat("hi")).text == "echo: hi"


async def test_without_a_daemon_require_says_so(through):
    with pytest.raises(ConnectFailed, match="No daemon"):
        async with through():
            pass


async def test_a_daemon_with_another_model_is_not_taken_for_this_one(start_daemon, settings):
    other = settings.with_model("brook")
    async with start_daemon(), AsyncOverspill("notes", settings=other) as ai:
        assert not ai.uses_daemon
        assert isinstance(ai.daemon_problem, DaemonRefused)


async def test_never_does_not_look(start_daemon, settings):
    async with start_daemon(), AsyncOverspill("t", settings=settings, daemon="never") as ai:
        assert not ai.uses_daemon
        assert ai.daemon_problem is None
