"""Stage 2: floors are only raised, evidence has to reach them, and consent is for one request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from overspill.routing.decide import remember
from overspill.routing.policy import RoutingPolicy
from overspill.routing.session_memory import SessionMemory
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Message, Privacy, Request
from overspill.types.evidence import Assurance, AttestationResult
from overspill.types.route import Grant, Route, RouteDecision, RouteReason

Decide = Callable[..., RouteDecision]
Ask = Callable[..., Request]
HARD = "12345678 and 87654321"


def codes(decision: RouteDecision) -> set[str]:
    return {reason.code for reason in decision.stages}


@pytest.mark.parametrize(
    ("floor", "assurance", "route"),
    [
        (Privacy.ATTESTED, Assurance.HARDWARE_TEE, Route.CLOUD),
        (Privacy.ATTESTED, Assurance.HARDWARE_TPM, Route.CLOUD),
        (Privacy.ATTESTED, Assurance.SOFTWARE, Route.DEVICE),
        (Privacy.ATTESTED, Assurance.NONE, Route.DEVICE),
        (Privacy.ANY, Assurance.SOFTWARE, Route.CLOUD),
        (Privacy.ANY, Assurance.NONE, Route.CLOUD),
        (Privacy.DEVICE, Assurance.HARDWARE_TEE, Route.DEVICE),
    ],
)
def test_the_assurance_reached_has_to_meet_the_floor(
    ask: Ask,
    route_of: Decide,
    situation: Situation,
    attested: Callable[..., AttestationResult],
    floor: Privacy,
    assurance: Assurance,
    route: Route,
) -> None:
    reached = replace(situation, attestation=attested(assurance))
    decision = route_of(ask(HARD, privacy=floor), reached)
    assert decision.route is route
    assert decision.reason is (
        RouteReason.ESCALATE if route is Route.CLOUD else RouteReason.PRIVACY
    )


def test_nothing_goes_where_nothing_was_verified(
    ask: Ask, route_of: Decide, situation: Situation
) -> None:
    decision = route_of(ask(HARD), replace(situation, attestation=None))
    assert decision.route is Route.DEVICE
    assert "not_verified" in codes(decision)


def test_a_verification_that_ran_out_no_longer_counts(
    ask: Ask, route_of: Decide, situation: Situation, now: int
) -> None:
    decision = route_of(ask(HARD), replace(situation, now_unix=now + 3600))
    assert decision.route is Route.DEVICE
    assert "verification_expired" in codes(decision)


@pytest.mark.parametrize("where", ["policy", "session", "request", "taint"])
def test_any_of_the_floors_keeps_it_on_the_device(
    ask: Ask, route_of: Decide, situation: Situation, where: str
) -> None:
    policy = RoutingPolicy(floor=Privacy.DEVICE if where == "policy" else Privacy.ANY)
    request = ask(HARD, privacy=Privacy.DEVICE if where == "request" else Privacy.ANY)
    if where == "session":
        situation = replace(situation, session_floor=Privacy.DEVICE)
    if where == "taint":
        situation = replace(situation, memory=SessionMemory(taint=Privacy.DEVICE))
    decision = route_of(request, situation, policy)
    assert (decision.route, decision.reason) == (Route.DEVICE, RouteReason.PRIVACY)
    assert decision.alternatives == ()


def test_the_device_floor_is_the_reason_even_where_no_cloud_was_looked_up(
    ask: Ask, route_of: Decide, cards: Mapping[Route, ModelCard]
) -> None:
    alone = {Route.DEVICE: cards[Route.DEVICE]}
    assert route_of(ask(HARD), cards=alone).reason is RouteReason.ONLY_ROUTE
    kept = route_of(ask(HARD, privacy=Privacy.DEVICE), cards=alone)
    assert (kept.route, kept.reason) == (Route.DEVICE, RouteReason.PRIVACY)


def test_the_device_floor_never_falls_back(
    ask: Ask, route_of: Decide, situation: Situation
) -> None:
    too_long = replace(situation, prompt_tokens={Route.DEVICE: 2000})
    decision = route_of(ask(HARD, privacy=Privacy.DEVICE), too_long)
    assert (decision.route, decision.alternatives) == (Route.REFUSED, ())


def test_a_card_number_keeps_the_request_and_then_its_session(
    ask: Ask, route_of: Decide, situation: Situation
) -> None:
    """A card number keeps its request on the device, and the conversation after it."""
    policy = RoutingPolicy()
    decision = route_of(ask("Is 4111 1111 1111 1111 a valid card?"), situation, policy)
    assert (decision.route, decision.reason) == (Route.DEVICE, RouteReason.PRIVACY)
    memory = remember(situation.memory, decision, policy)
    assert memory.taint is Privacy.DEVICE
    # The client has dropped the turn with the number; the session has not forgotten it.
    after = route_of(ask(HARD), replace(situation, memory=memory), policy)
    assert (after.route, after.reason) == (Route.DEVICE, RouteReason.PRIVACY)


def test_an_e_mail_address_asks_for_hardware(
    ask: Ask,
    route_of: Decide,
    situation: Situation,
    attested: Callable[..., AttestationResult],
) -> None:
    """An e-mail address may leave for verified hardware alone."""
    text = f"{HARD}, write to jane@mail.example.org"
    assert route_of(ask(text), situation).route is Route.CLOUD
    software = replace(situation, attestation=attested(Assurance.SOFTWARE))
    assert route_of(ask(text), software).route is Route.DEVICE


def test_a_secret_in_a_tools_result_counts(route_of: Decide) -> None:
    request = Request(
        (Message("system", "the key is AKIAIOSFODNN7EXAMPLE"), Message("user", HARD)),
        privacy=Privacy.ANY,
    )
    assert route_of(request).reason is RouteReason.PRIVACY


def test_a_detector_can_be_turned_off(ask: Ask, route_of: Decide) -> None:
    text = f"{HARD} 4111 1111 1111 1111"
    assert route_of(ask(text), policy=RoutingPolicy(detectors={})).route is Route.CLOUD


@pytest.fixture
def third_party(device_card: ModelCard) -> Mapping[Route, ModelCard]:
    return {
        Route.DEVICE: device_card,
        Route.THIRD_PARTY: ModelCard("gpt", context=10_000, runtime="remote"),
    }


def test_a_third_party_needs_a_grant_for_this_request(
    ask: Ask,
    route_of: Decide,
    situation: Situation,
    third_party: Mapping[Route, ModelCard],
    now: int,
) -> None:
    request = ask(HARD)

    def decide_with(grant: Grant | None, request: Request = request) -> RouteDecision:
        return route_of(request, replace(situation, grant=grant), cards=third_party)

    assert "consent_required" in codes(decide_with(None))
    assert decide_with(None).route is Route.DEVICE
    granted = Grant("openai", request.id, now + 60)
    assert decide_with(granted).route is Route.THIRD_PARTY
    assert "consent_required" in codes(decide_with(Grant("openai", "another", now + 60)))
    assert "consent_expired" in codes(decide_with(Grant("openai", request.id, now)))
    stricter = replace(request, privacy=Privacy.ATTESTED)
    assert "third_party_floor" in codes(decide_with(granted, stricter))
