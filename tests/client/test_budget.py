"""A chain of calls shares one deadline, one purse and its tokens."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill import AsyncOverspill, Overspill
from overspill.budget import MAX_ANSWER_TOKENS, Budget, ChainLengths, use_budget
from overspill.config import load_settings
from overspill.errors import BudgetExhausted, EngineError, InvalidRequest
from overspill.testing import FakeEngine
from overspill.types.card import ModelCard
from overspill.types.chat import Finish, FinishReason, Message, Request
from overspill.types.usage import Usage

CARD = ModelCard("m", 100, "r", price_prompt_per_mtok=2.0, price_completion_per_mtok=4.0)
HELLO = Request(messages=(Message("user", "hello"),), max_tokens=100)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def settings(tmp_path):
    return load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})


def test_the_nearer_deadline_wins():
    request = Request(messages=(Message("user", "x"),), deadline_s=2.0)
    assert Budget(seconds=100).shape(request).deadline_s == 2.0
    left = Budget(seconds=1).shape(request).deadline_s
    assert left is not None
    assert 0 < left <= 1


def test_a_purse_is_spent_by_the_answering_models_price():
    budget = Budget(cost=1.0)
    finish = Finish(FinishReason.STOP, Usage(250_000, 125_000), model="m")
    budget.spend(finish, [CARD])
    assert budget.cost_left == pytest.approx(0.0)
    with pytest.raises(BudgetExhausted):
        budget.shape(Request(messages=()))


def test_tokens_are_counted_of_prompts_and_answers():
    budget = Budget(tokens=100)
    budget.spend(Finish(FinishReason.STOP, Usage(60, 30), model="m"), [])
    assert budget.tokens_left == 10
    assert budget.shape(HELLO).left.tokens == 10
    budget.take(0.0, 10)
    with pytest.raises(BudgetExhausted, match="tokens are used up"):
        budget.check()


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0}, {"cost": -1}, {"tokens": 0}, {"calls": 0}, {"cost": float("nan")}]
)
def test_an_empty_budget_is_a_mistake(wrong):
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        Budget(**wrong)


def test_a_budget_inside_another_never_has_more():
    clock = Clock()
    outer = Budget(seconds=10, cost=1.0, tokens=500, clock=clock)
    inner = Budget(seconds=30, cost=5.0, tokens=100, around=outer, clock=clock)
    assert (inner.seconds_left, inner.cost_left, inner.tokens_left) == (10, 1.0, 100)
    inner.take(0.25, 40)
    assert (outer.cost_left, outer.tokens_left) == (0.75, 460)
    assert (inner.cost_left, inner.tokens_left) == (0.75, 60)
    clock.now_s = 11
    with pytest.raises(BudgetExhausted, match="deadline"):
        inner.check()


def test_calls_side_by_side_cannot_reserve_the_same_money_twice():
    budget = Budget(cost=0.002, prices={"m": CARD})
    first = budget.reserve(budget.shape(HELLO))
    free = budget.left().cost
    assert 0 < free < 0.002
    second = budget.reserve(budget.shape(replace(HELLO, max_tokens=MAX_ANSWER_TOKENS)))
    assert second.cost == pytest.approx(free)
    with pytest.raises(BudgetExhausted, match="reserved for calls under way"):
        budget.shape(HELLO)
    budget.release(second)
    budget.release(first)
    assert budget.shape(HELLO).left.cost == 0.002


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 3000)), max_size=12))
def test_what_was_reserved_is_free_again_and_what_was_spent_is_gone(used):
    budget = Budget(cost=100.0, tokens=10**6, prices={"m": CARD})
    holds = [budget.reserve(budget.shape(replace(HELLO, max_tokens=a))) for _, a in used]
    for (prompt, answer), hold in zip(used, holds, strict=True):
        budget.spend(Finish(FinishReason.STOP, Usage(prompt, answer), "m"), [CARD])
        budget.release(hold)
    assert budget.left().cost == pytest.approx(100 - sum(CARD.cost(p, a) for p, a in used))
    assert budget.left().tokens == 10**6 - sum(p + a for p, a in used)


def test_time_is_shared_among_the_calls_that_are_still_expected():
    clock = Clock()
    budget = Budget(seconds=8, calls=8, clock=clock)
    calls = []
    for _ in range(10):
        shaped = budget.shape(HELLO)
        calls.append(shaped.left.calls)
        budget.release(budget.reserve(shaped))
        clock.now_s += 0.5
    assert calls == [8, 7, 6, 5, 4, 3, 2, 1, 1, 1]


def test_a_client_learns_how_long_its_chains_are():
    chains = ChainLengths()
    before = chains.expected
    chains.observe(0)
    assert chains.expected == before
    for _ in range(20):
        chains.observe(7)
    assert chains.expected == 7


@pytest.mark.anyio
async def test_calls_inside_share_what_is_left_and_calls_outside_do_not(settings):
    device = FakeEngine()
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        with ai.budget(seconds=50, tokens=1000) as budget:
            reply = await ai.chat("a")
            await ai.chat("b", deadline_s=1)
        await ai.chat("c")
    first, second, third = (request.deadline_s for request in device.requests)
    assert first is not None
    assert 49 < first <= 50
    assert second == 1
    assert third is None
    assert budget.tokens_left == 1000 - 2 * reply.usage.total_tokens
    assert budget.calls_made == 2


@pytest.mark.anyio
async def test_a_budget_that_has_run_out_stops_the_chain(settings):
    device = FakeEngine()
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        with ai.budget(seconds=1e-9), pytest.raises(BudgetExhausted, match="deadline"):
            await ai.chat("a")
    assert not device.requests


@pytest.mark.anyio
async def test_the_deadline_ends_an_answer_and_keeps_its_text(settings):
    device = FakeEngine("one two three four", delay_s=0.2)
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        with ai.budget(seconds=0.5), pytest.raises(BudgetExhausted, match="deadline") as caught:
            await ai.chat("a")
        assert caught.value.partial.startswith("one")
        assert "four" not in caught.value.partial
        while not device.cancelled:  # noqa: ASYNC110 - the fake counts, and tells nobody
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_an_engine_that_cannot_be_left_does_not_hold_the_chain_up(settings):
    class Stubborn(FakeEngine):
        async def _generate(self, request):
            try:
                await asyncio.sleep(60)
            finally:
                with_patience.set()
                await released.wait()
            yield  # pragma: no cover

    with_patience, released = asyncio.Event(), asyncio.Event()
    async with AsyncOverspill("t", settings=settings, device=Stubborn()) as ai:
        with ai.budget(seconds=0.05), pytest.raises(BudgetExhausted):
            await ai.chat("a")
        assert not released.is_set()
        await with_patience.wait()
        released.set()


@pytest.mark.anyio
async def test_a_call_may_be_made_while_another_ones_answer_is_read(settings):
    async with AsyncOverspill("t", settings=settings, device=FakeEngine("a b c")) as ai:
        with ai.budget(seconds=50, tokens=10_000) as budget:
            async for chunk in ai.stream("outer"):
                if chunk.finish is None:
                    await ai.chat("inner")
            await asyncio.gather(*(ai.chat("beside") for _ in range(5)))
        assert budget.calls_made == 1 + 3 + 5


@pytest.mark.anyio
async def test_tokens_that_are_left_limit_the_answer_and_say_so(settings):
    device = FakeEngine("a b c d e f g h")
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        with ai.budget(tokens=5):
            reply = await ai.chat("one two")
            assert (reply.text, reply.finish_reason) == ("a b c", FinishReason.LENGTH)
            with pytest.raises(BudgetExhausted):
                await ai.chat("three")


def test_the_blocking_client_shares_them_too(settings):
    with Overspill("t", settings=settings, device=FakeEngine()) as ai:
        with ai.budget(tokens=100) as outer, ai.budget(tokens=1000):
            reply = ai.chat("a")
            list(ai.stream("b"))
        assert outer.tokens_left == 100 - 2 * reply.usage.total_tokens


def test_a_budget_is_the_innermost_one_inside_its_block():
    outer, inner = Budget(seconds=5), Budget(seconds=1)
    with use_budget(outer) as found, use_budget(inner) as within:
        assert (found, within) == (outer, inner)


@pytest.mark.anyio
@pytest.mark.parametrize("after", [0, 2])
async def test_a_call_that_fails_gives_back_the_tokens_that_it_held(settings, after):
    device = FakeEngine("a b c", error=EngineError("broken"), error_after=after)
    async with AsyncOverspill("t", settings=settings, device=device) as ai:
        with ai.budget(tokens=50) as budget:
            for _ in range(3):  # were anything held, the later ones would be refused
                with pytest.raises(EngineError, match="broken"):
                    await ai.chat("one two", max_tokens=48)
                assert budget.check().tokens == budget.tokens_left == 50
            device.error = None
            assert (await ai.chat("one two")).text == "a b c"
            assert 0 < budget.check().tokens < 50
