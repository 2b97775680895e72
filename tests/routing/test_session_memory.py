"""Conversations: fast attack, slow release, a price for moving, and tool chains that stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.routing.decide import remember
from overspill.routing.policy import RoutingPolicy
from overspill.routing.session_memory import SessionMemory, replay, with_memory
from overspill.routing.situation import Situation
from overspill.types.chat import Message, Privacy, Request, ToolCall
from overspill.types.route import Route, RouteDecision, RouteReason

Decide = Callable[..., RouteDecision]
HARD, EASY = "12345678 and 87654321", "commit it"
gains = st.floats(-1, 1)
releases = st.floats(0, 1)


def conversation(*turns: str) -> Request:
    """User turns with an answer between each two."""
    messages = [Message("user", turns[0])]
    for turn in turns[1:]:
        messages += [Message("assistant", "done"), Message("user", turn)]
    return Request(tuple(messages), privacy=Privacy.ANY)


def test_an_easy_turn_after_a_hard_one_stays_with_the_large_model(
    route_of: Decide, situation: Situation
) -> None:
    policy, memory, routes = RoutingPolicy(), SessionMemory(), []
    for text in (HARD, *[EASY] * 7):
        decision = route_of(conversation(text), replace(situation, memory=memory), policy)
        memory = remember(memory, decision, policy)
        routes.append(decision.route)
    assert routes[:2] == [Route.CLOUD, Route.CLOUD]
    assert routes[-1] is Route.DEVICE  # slow release, but release


def test_a_conversation_without_memory_is_replayed(route_of: Decide) -> None:
    assert route_of(conversation(EASY)).route is Route.DEVICE
    decision = route_of(conversation(HARD, EASY))
    assert decision.route is Route.CLOUD
    assert decision.contributions["session_memory"] > 0


def test_the_contribution_of_memory_is_part_of_the_exact_sum(
    route_of: Decide, situation: Situation
) -> None:
    memory = SessionMemory(turns=1, route=Route.CLOUD, held_gain=0.8)
    decision = route_of(conversation(EASY), replace(situation, memory=memory))
    stage = decision.stages[-1]
    assert sum(decision.contributions.values()) == stage.numbers["gain"] == pytest.approx(0.4)


@pytest.mark.parametrize(("where", "sign"), [(None, 0.0), (Route.DEVICE, 1.0), (Route.CLOUD, -1.0)])
def test_moving_has_a_price(
    route_of: Decide, situation: Situation, where: Route | None, sign: float
) -> None:
    memory = SessionMemory(turns=1, route=where)
    decision = route_of(conversation(EASY), replace(situation, memory=memory))
    policy = RoutingPolicy()
    assert decision.threshold == pytest.approx(policy.threshold + sign * policy.switching_price)


def in_a_tool_chain(first: str) -> Request:
    call = Message("assistant", "", (ToolCall("c", "clock", "{}"),))
    result = Message("tool", "12", tool_call_id="c")
    return Request((Message("user", first), call, result), privacy=Privacy.ANY)


@pytest.mark.parametrize(
    ("where", "text"), [(Route.DEVICE, HARD), (Route.CLOUD, EASY)], ids=["device", "cloud"]
)
def test_a_tool_chain_stays_where_it_began(
    route_of: Decide, situation: Situation, where: Route, text: str
) -> None:
    memory = SessionMemory(turns=1, route=where, reason=RouteReason.ESCALATE)
    decision = route_of(in_a_tool_chain(text), replace(situation, memory=memory))
    assert (decision.route, decision.reason) == (where, RouteReason.ESCALATE)
    assert decision.stages[-1].code == "tool_chain_stays"


def test_a_tool_chain_leaves_a_route_that_is_gone(route_of: Decide, situation: Situation) -> None:
    memory = SessionMemory(turns=1, route=Route.CLOUD, reason=RouteReason.ESCALATE)
    gone = replace(situation, memory=memory, unavailable={Route.CLOUD: "connect_failed"})
    assert route_of(in_a_tool_chain(EASY), gone).route is Route.DEVICE


def test_a_refusal_is_no_turn_but_still_taints(route_of: Decide, situation: Situation) -> None:
    policy, before = RoutingPolicy(), SessionMemory(turns=2, route=Route.CLOUD, held_gain=0.3)
    too_long = replace(situation, prompt_tokens={Route.DEVICE: 5000}, memory=before)
    decision = route_of(conversation("4111 1111 1111 1111"), too_long, policy)
    assert decision.route is Route.REFUSED
    assert remember(before, decision, policy) == replace(before, taint=Privacy.DEVICE)


@given(gains, gains, releases)
def test_attack_is_at_once_and_memory_never_makes_a_turn_easier(
    gain: float, held: float, release: float
) -> None:
    assert with_memory(gain, held, release) >= gain
    assert with_memory(1.0, held, release) == 1.0


@given(st.lists(gains, max_size=12), releases)
def test_what_is_held_fades_with_every_easy_turn(turns: list[float], release: float) -> None:
    held = replay(turns, release)
    assert replay([*turns, -1.0], release) <= max(held, 0.0)
