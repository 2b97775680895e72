"""A chain of calls shares one deadline and one purse."""

import pytest

from overspill import AsyncOverspill
from overspill.budget import Budget
from overspill.config import load_settings
from overspill.errors import BudgetExhausted, InvalidRequest
from overspill.testing import FakeEngine
from overspill.types.card import ModelCard
from overspill.types.chat import Finish, FinishReason, Message, Request
from overspill.types.usage import Usage


def test_the_nearer_deadline_wins():
    request = Request(messages=(Message("user", "x"),), deadline_s=2.0)
    assert Budget(seconds=100).shape(request).deadline_s == 2.0
    left = Budget(seconds=1).shape(request).deadline_s
    assert left is not None
    assert 0 < left <= 1


def test_a_purse_is_spent_by_the_answering_models_price():
    budget = Budget(cost=1.0)
    card = ModelCard("m", 100, "r", price_prompt_per_mtok=2.0, price_completion_per_mtok=4.0)
    finish = Finish(FinishReason.STOP, Usage(250_000, 125_000), model="m")
    budget.spend(finish, [card])
    assert budget.cost_left == pytest.approx(0.0)
    with pytest.raises(BudgetExhausted):
        budget.shape(Request(messages=()))


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"cost": -1}])
def test_an_empty_budget_is_a_mistake(wrong):
    with pytest.raises(InvalidRequest):
        Budget(**wrong)


@pytest.mark.anyio
async def test_calls_inside_share_what_is_left_and_calls_outside_do_not(tmp_path):
    settings = load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})
    device = FakeEngine()
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        with ai.budget(seconds=50):
            await ai.chat("a")
            await ai.chat("b", deadline_s=1)
        await ai.chat("c")
    first, second, third = (request.deadline_s for request in device.requests)
    assert first is not None
    assert 49 < first <= 50
    assert second == 1
    assert third is None


@pytest.mark.anyio
async def test_a_budget_that_has_run_out_stops_the_chain(tmp_path, monkeypatch):
    settings = load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})
    device = FakeEngine()
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        with ai.budget(seconds=1e-9), pytest.raises(BudgetExhausted, match="deadline"):
            await ai.chat("a")
    assert not device.requests
