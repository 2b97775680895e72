"""Stage 4 beside quality: money, lateness, energy; exact sums that only grow as a device slows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import ConfigurationError
from overspill.routing.cost import Prices, answer_limit
from overspill.routing.policy import RoutingPolicy, parse_policy
from overspill.routing.situation import AnswerLength, Situation
from overspill.types.budget import Left
from overspill.types.card import ModelCard
from overspill.types.chat import Message, Privacy, Request
from overspill.types.route import DeviceProfile, NetworkState, Route, RouteDecision, RouteReason

HELLO = Request((Message("user", "hello"),), privacy=Privacy.ANY, max_tokens=100)
ROAD = NetworkState(rtt_s=0.1, prefill_tokens_per_s=2000, decode_tokens_per_s=80)
speeds = st.floats(0.5, 5000)
Decide = Callable[..., RouteDecision]


def priced(cards: Mapping[Route, ModelCard], price: float) -> dict[Route, ModelCard]:
    cloud = replace(
        cards[Route.CLOUD], price_prompt_per_mtok=price, price_completion_per_mtok=price
    )
    return {**cards, Route.CLOUD: cloud}


@given(
    st.floats(0.1, 60),
    speeds,
    st.floats(0.01, 0.99),
    st.floats(0, 100),
    st.booleans(),
    st.sampled_from(["hello", "12", "what is 48 * 37"]),
)
def test_the_sum_decides_and_a_slower_device_never_keeps_more(
    route_of: Decide,
    situation: Situation,
    cards: Mapping[Route, ModelCard],
    deadline_s: float,
    decode: float,
    share: float,
    price: float,
    on_battery: bool,
    text: str,
) -> None:
    request = replace(
        HELLO,
        messages=(Message("user", text),),
        deadline_s=deadline_s,
        left=Left(seconds=deadline_s, cost=1.0, calls=4),
    )
    worths = []
    for slowed in (1, 2, 4, 8, 16):
        device = DeviceProfile(
            10 * decode / slowed,
            decode / slowed,
            on_battery=on_battery,
            prefill_slow_tokens_per_s=share * 10 * decode / slowed,
            decode_slow_tokens_per_s=share * decode / slowed,
        )
        facts = replace(situation, device=device, network=ROAD, answer=AnswerLength(80, 20))
        decision = route_of(request, facts, cards=priced(cards, price))
        worth = sum(decision.contributions.values()) + sum(decision.tradeoffs.values())
        both = decision.alternatives != ()
        if both:
            assert (decision.route is Route.CLOUD) == (worth > (decision.threshold or 0.0))
            worths.append(worth)
        elif decision.route is Route.CLOUD:
            worths.append(float("inf"))
    assert worths == pytest.approx(sorted(worths))


def test_what_nobody_measured_weighs_nothing(route_of: Decide, situation: Situation) -> None:
    assert route_of(replace(HELLO, deadline_s=1.0), situation).tradeoffs == {}


def test_a_price_may_keep_a_request_unless_a_certificate_bounds_it(
    route_of: Decide, situation: Situation, cards: Mapping[Route, ModelCard]
) -> None:
    hard = replace(HELLO, messages=(Message("user", "what is 123456 * 7"),))
    dear = priced(cards, 1e6)
    kept = route_of(hard, situation, cards=dear)
    assert (kept.route, kept.reason) == (Route.DEVICE, RouteReason.NOT_WORTH_IT)
    assert kept.tradeoffs["cost"] < -1
    certified = RoutingPolicy(certificate={"epsilon": 0.05})
    assert route_of(hard, situation, certified, dear).route is Route.CLOUD


def test_a_purse_takes_routes_away_and_may_leave_none(
    route_of: Decide, situation: Situation, cards: Mapping[Route, ModelCard]
) -> None:
    poor = replace(HELLO, left=Left(cost=1e-9))
    dear = priced(cards, 10.0)
    decision = route_of(poor, situation, cards=dear)
    assert (decision.route, decision.alternatives) == (Route.DEVICE, ())
    alone = {Route.CLOUD: dear[Route.CLOUD]}
    refused = route_of(poor, situation, cards=alone)
    assert refused.route is Route.REFUSED
    assert refused.stages[-1].code == "purse"
    spent = replace(HELLO, left=Left(tokens=40))
    assert route_of(spent, situation).route is Route.REFUSED


@given(st.integers(1, 3000), st.integers(0, 500), st.floats(0.0001, 1), st.integers(1, 5000))
def test_an_answer_never_costs_more_than_there_is(
    max_tokens: int, prompt: int, cost: float, tokens: int
) -> None:
    card = ModelCard("m", 4096, "x", price_prompt_per_mtok=1, price_completion_per_mtok=100)
    request = replace(HELLO, max_tokens=max_tokens, left=Left(cost=cost, tokens=tokens))
    limit = answer_limit(request, card, prompt)
    assert limit is not None
    assert 1 <= limit <= max_tokens
    assert limit == 1 or (card.cost(prompt, limit) <= cost and prompt + limit <= tokens)


def test_a_battery_that_runs_down_and_a_hot_device_speak_for_leaving(
    route_of: Decide, situation: Situation
) -> None:
    def energy(**facts: float | bool) -> Mapping[str, float]:
        device = DeviceProfile(200, 10, **facts)  # type: ignore[arg-type]  # by name
        return route_of(HELLO, replace(situation, device=device, network=ROAD)).tradeoffs

    assert "energy" not in energy(on_battery=False)
    full, low = (energy(on_battery=True, battery_percent=p)["energy"] for p in (100, 10))
    assert 0 < full < low
    assert energy(thermal_headroom_c=1.0)["heat"] > 0
    assert "heat" not in energy(thermal_headroom_c=30.0)


def test_a_hedge_needs_a_cap_a_second_route_and_no_floor_against_it(
    route_of: Decide, situation: Situation
) -> None:
    policy = RoutingPolicy(prices=Prices(hedge_share=0.05))
    facts = replace(situation, device=DeviceProfile(400, 60), network=ROAD)
    request = replace(HELLO, deadline_s=10.0)
    hedge = route_of(request, facts, policy).hedge
    assert hedge is not None
    assert hedge.route is Route.CLOUD
    assert 0 < hedge.after_s < 10
    assert route_of(request, facts).hedge is None
    assert route_of(request, replace(facts, hedged_share=0.05), policy).hedge is None
    assert route_of(request, replace(facts, pinned=Route.DEVICE), policy).hedge is None
    assert route_of(replace(request, privacy=Privacy.DEVICE), facts, policy).hedge is None


@pytest.mark.parametrize(
    "text", ["late = -1", "late = nan", "hedge_share = 2", "soon = 1", "late = true"]
)
def test_prices_are_read_strictly(text: str) -> None:
    with pytest.raises(ConfigurationError, match=text.split()[0]):
        parse_policy(f'version = "x"\n[prices]\n{text}\n')


def test_prices_are_part_of_a_policys_hash() -> None:
    policy = parse_policy('version = "x"\n[prices]\ncost = 2\n')
    assert policy.prices == Prices(cost=2.0)
    assert RoutingPolicy().sha256 != RoutingPolicy(prices=Prices(cost=2.0)).sha256
