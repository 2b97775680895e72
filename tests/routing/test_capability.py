"""Stage 1: what a route lacks takes it away, with the numbers that were compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Grammar, Request, Tool
from overspill.types.route import (
    DeviceProfile,
    NetworkState,
    Route,
    RouteDecision,
    RouteReason,
    StageReason,
)

Decide = Callable[..., RouteDecision]
Ask = Callable[..., Request]


def stage(decision: RouteDecision, code: str) -> StageReason:
    return next(reason for reason in decision.stages if reason.code == code)


def test_a_prompt_over_the_devices_context_spills(
    ask: Ask, route_of: Decide, situation: Situation
) -> None:
    long = replace(situation, prompt_tokens={Route.DEVICE: 1000})
    decision = route_of(ask("tell me", max_tokens=100), long)
    assert (decision.route, decision.reason) == (Route.CLOUD, RouteReason.SPILL)
    reason = stage(decision, "context")
    assert reason.removed == (Route.DEVICE,)
    assert reason.numbers == {"prompt_tokens": 1000, "max_tokens": 100, "context_tokens": 1024}


@pytest.mark.parametrize(("max_tokens", "fits"), [(24, True), (25, False), (None, True)])
def test_the_context_has_to_hold_prompt_and_answer(
    ask: Ask, route_of: Decide, situation: Situation, max_tokens: int | None, fits: bool
) -> None:
    decision = route_of(
        ask("tell me", max_tokens=max_tokens),
        replace(situation, prompt_tokens={Route.DEVICE: 1000}),
    )
    assert any(reason.code == "context" for reason in decision.stages) is not fits


def test_a_prompt_over_every_context_is_refused_with_numbers_for_each(
    ask: Ask, route_of: Decide, situation: Situation
) -> None:
    tokens = {Route.DEVICE: 5000, Route.CLOUD: 6000}
    decision = route_of(ask("tell me"), replace(situation, prompt_tokens=tokens))
    assert (decision.route, decision.reason) == (Route.REFUSED, RouteReason.NO_ROUTE)
    found = [r.numbers["prompt_tokens"] for r in decision.stages if r.code == "context"]
    assert found == [5000, 6000]


def test_an_unknown_length_takes_nothing_away(
    ask: Ask, route_of: Decide, situation: Situation
) -> None:
    decision = route_of(ask("tell me", max_tokens=10**6), replace(situation, prompt_tokens={}))
    assert decision.route is Route.DEVICE


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"tools": (Tool("clock"),)}, "tools"),
        ({"json_schema": {"type": "object"}}, "json_schema"),
        ({"grammar": Grammar("regex", "a+")}, "json_schema"),
        ({"tools": (Tool("clock"),), "tool_choice": "required"}, "json_schema"),
        ({"tools": (Tool("clock", strict=True),)}, "json_schema"),
    ],
)
def test_what_the_device_model_cannot_do_goes_to_the_cloud(
    ask: Ask, route_of: Decide, options: dict[str, object], code: str
) -> None:
    decision = route_of(ask("tell me", **options))
    assert (decision.route, decision.reason) == (Route.CLOUD, RouteReason.ONLY_ROUTE)
    assert stage(decision, code).removed == (Route.DEVICE,)


def test_tools_that_may_not_be_called_need_no_support(ask: Ask, route_of: Decide) -> None:
    decision = route_of(ask("tell me", tools=(Tool("clock"),), tool_choice="none"))
    assert decision.route is Route.DEVICE


def test_offline_stays_on_the_device(ask: Ask, route_of: Decide, situation: Situation) -> None:
    offline = replace(situation, network=NetworkState(online=False))
    decision = route_of(ask("12345678 and 87654321"), offline)
    assert (decision.route, decision.reason) == (Route.DEVICE, RouteReason.ONLY_ROUTE)
    assert stage(decision, "offline").removed == (Route.CLOUD,)


@pytest.mark.parametrize(("loaded", "route"), [(False, Route.CLOUD), (True, Route.DEVICE)])
def test_memory_counts_until_the_model_is_loaded(
    ask: Ask, route_of: Decide, situation: Situation, loaded: bool, route: Route
) -> None:
    small = replace(
        situation, device=DeviceProfile(memory_free_bytes=2_100_000), device_loaded=loaded
    )
    assert route_of(ask("tell me"), small).route is route


def test_a_route_that_is_down_says_why_even_without_a_card(
    ask: Ask, route_of: Decide, situation: Situation, cards: Mapping[Route, ModelCard]
) -> None:
    down = replace(situation, unavailable={Route.CLOUD: "evidence_rejected"})
    decision = route_of(ask("tell me"), down, cards={Route.DEVICE: cards[Route.DEVICE]})
    assert (decision.route, decision.reason) == (Route.DEVICE, RouteReason.ONLY_ROUTE)
    assert stage(decision, "unavailable").detail == "evidence_rejected"
    assert decision.alternatives == ()


def test_a_language_that_only_the_cloud_claims_goes_there(ask: Ask, route_of: Decide) -> None:
    decision = route_of(ask("Wie viele Einwohner hat die Stadt und was ist der Name?"))
    assert decision.route is Route.CLOUD
    assert stage(decision, "language").removed == (Route.DEVICE,)


def test_a_language_that_nobody_claims_refuses_nothing(ask: Ask, route_of: Decide) -> None:
    decision = route_of(ask("Сколько озёр в этой стране?"))
    assert decision.route is Route.DEVICE
    assert stage(decision, "language_unclaimed").removed == ()


def test_without_a_model_or_a_cloud_there_is_no_route(ask: Ask, route_of: Decide) -> None:
    assert route_of(ask("tell me"), cards={}).route is Route.REFUSED
