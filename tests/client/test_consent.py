"""A person is asked for each request that only a third party could answer, and never for others."""

from __future__ import annotations

import time

import pytest

from overspill import AsyncOverspill, Grant, Overspill
from overspill.config import load_settings
from overspill.errors import ConsentRequired, UsageError
from overspill.testing import FakeEngine

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(tmp_path):
    return load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})


def third_party(request):
    """Answers what was granted, as the route to a third party would."""
    return "granted" if request.grant is not None else ConsentRequired("Nobody granted it.")


def granting(plans, request_id=None):
    def on_consent(plan):
        plans.append(plan)
        return Grant("maker", request_id or plan.request_id, int(time.time()) + 60)

    return on_consent


async def test_a_grant_is_asked_for_each_request_with_its_plan(settings):
    plans, model = [], FakeEngine(third_party)
    async with AsyncOverspill(
        "t", settings=settings, device=model, on_consent=granting(plans)
    ) as ai:
        assert (await ai.chat("one")).text == "granted"
        assert (await ai.chat("two")).text == "granted"
    assert [plan.request_id for plan in plans] == [model.requests[0].id, model.requests[2].id]
    assert plans[0].request_id != plans[1].request_id
    assert [r.grant and r.grant.request_id for r in model.requests[:2]] == [
        None,
        plans[0].request_id,
    ]


async def test_an_async_callback_may_ask(settings):
    async def on_consent(plan):
        return Grant("maker", plan.request_id, int(time.time()) + 60)

    async with AsyncOverspill(
        "t", settings=settings, device=FakeEngine(third_party), on_consent=on_consent
    ) as ai:
        assert "".join([p.text async for p in ai.stream("x")]) == "granted"


async def test_without_a_grant_the_refusal_stands(settings):
    for on_consent in (None, lambda plan: None):
        async with AsyncOverspill(
            "t", settings=settings, device=FakeEngine(third_party), on_consent=on_consent
        ) as ai:
            with pytest.raises(ConsentRequired):
                await ai.chat("x")


async def test_a_grant_that_does_not_help_is_not_asked_for_again(settings):
    plans = []
    model = FakeEngine(lambda request: ConsentRequired("Still nobody."))
    async with AsyncOverspill(
        "t", settings=settings, device=model, on_consent=granting(plans)
    ) as ai:
        with pytest.raises(ConsentRequired):
            await ai.chat("x")
    assert len(plans) == 1


async def test_a_grant_for_another_request_is_refused(settings):
    async with AsyncOverspill(
        "t", settings=settings, device=FakeEngine(third_party), on_consent=granting([], "other")
    ) as ai:
        with pytest.raises(UsageError, match="another request"):
            await ai.chat("x")


async def test_what_needs_no_consent_asks_nobody(settings):
    plans = []
    async with AsyncOverspill(
        "t", settings=settings, device=FakeEngine("mine"), on_consent=granting(plans)
    ) as ai:
        assert (await ai.chat("x")).text == "mine"
    assert plans == []


def test_the_blocking_client_asks_too(settings):
    plans = []
    with Overspill(
        "t", settings=settings, device=FakeEngine(third_party), on_consent=granting(plans)
    ) as ai:
        assert ai.chat("x").text == "granted"
    assert len(plans) == 1


async def test_the_refusal_names_the_plan_that_a_person_is_to_see(settings):
    model = FakeEngine(third_party)
    async with AsyncOverspill("t", settings=settings, device=model) as ai:
        with pytest.raises(ConsentRequired) as refused:
            await ai.chat("x")
    assert refused.value.plan_id == model.requests[0].id
