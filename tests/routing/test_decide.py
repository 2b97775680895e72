"""The decision as a whole, over the space of situations: what no combination may break."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace

from hypothesis import given
from hypothesis import strategies as st

from overspill.routing.decide import decide
from overspill.routing.policy import RoutingPolicy
from overspill.routing.session_memory import SessionMemory
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Message, Privacy, Request, Tool
from overspill.types.evidence import Assurance, AttestationResult
from overspill.types.route import (
    DeviceProfile,
    Grant,
    NetworkState,
    Route,
    RouteDecision,
    RouteReason,
)

ROUTES = (Route.DEVICE, Route.CLOUD, Route.THIRD_PARTY)
SECRET = "zebra-quartz"
words = st.sampled_from(
    ["What is 4821 * 377?", "hello", "sort 3, 1, 2", "4111 1111 1111 1111", "wer ist das und was?"]
)
texts = st.lists(words, min_size=1, max_size=4).map(lambda found: f"{SECRET} " + " ".join(found))
floors = st.sampled_from(Privacy)
counts = st.integers(0, 6000)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    turns = draw(st.lists(texts, min_size=1, max_size=3))
    messages = []
    for turn in turns:
        messages += [Message("user", turn), Message("assistant", f"{SECRET} answer")]
    return Request(
        tuple(messages[:-1]),
        id="r1",
        max_tokens=draw(st.none() | st.integers(1, 6000)),
        tools=draw(st.sampled_from([(), (Tool("clock", SECRET),)])),
        json_schema=draw(st.sampled_from([None, {"title": SECRET}])),
        privacy=draw(floors),
    )


@st.composite
def card_sets(draw: st.DrawFn) -> dict[Route, ModelCard]:
    return {
        route: ModelCard(
            name,
            context=draw(st.sampled_from([512, 4096])),
            runtime="x",
            size_bytes=draw(counts),
            tools=draw(st.booleans()),
            json_schema=draw(st.booleans()),
            languages=draw(st.sampled_from([("en",), ("en", "de")])),
        )
        for route, name in zip(ROUTES, ("brook", "river", "third"), strict=True)
        if draw(st.integers(0, 3))
    }


@st.composite
def situations(
    draw: st.DrawFn, attested: Callable[[Assurance], AttestationResult], now: int
) -> Situation:
    return Situation(
        device=DeviceProfile(memory_free_bytes=draw(st.none() | counts)),
        network=NetworkState(online=draw(st.booleans())),
        prompt_tokens=draw(st.dictionaries(st.sampled_from(ROUTES), counts)),
        attestation=draw(st.none() | st.sampled_from(Assurance).map(attested)),
        grant=draw(st.sampled_from([None, Grant("p", "r1", now + 9), Grant("p", "r2", now + 9)])),
        session_floor=draw(floors),
        memory=draw(
            st.builds(
                SessionMemory,
                turns=st.integers(0, 3),
                route=st.none() | st.sampled_from(ROUTES),
                reason=st.just(RouteReason.ESCALATE),
                held_gain=st.floats(-1, 1),
                taint=floors,
            )
        ),
        unavailable=draw(st.dictionaries(st.sampled_from(ROUTES), st.just("busy"), max_size=1)),
        pinned=draw(st.none() | st.sampled_from(ROUTES)),
        device_loaded=draw(st.booleans()),
        now_unix=now + draw(st.sampled_from([0, 7200])),
    )


policies = st.builds(
    RoutingPolicy,
    floor=floors,
    threshold=st.floats(-1, 1),
    switching_price=st.floats(0, 1),
    strict=st.booleans(),
)
Facts = tuple[Request, Situation, RoutingPolicy, Mapping[Route, ModelCard]]


def draw_facts(
    data: st.DataObject, attested: Callable[[Assurance], AttestationResult], now: int
) -> Facts:
    """One combination of everything that a decision looks at."""
    return (
        data.draw(requests()),
        data.draw(situations(attested, now)),
        data.draw(policies),
        data.draw(card_sets()),
    )


def strictest(request: Request, situation: Situation, policy: RoutingPolicy) -> Privacy:
    named = (request.privacy, policy.floor, situation.session_floor, situation.memory.taint)
    return max(named, key=lambda floor: floor.strictness)


@given(st.data())
def test_stages_only_narrow(
    attested: Callable[[Assurance], AttestationResult], now: int, data: st.DataObject
) -> None:
    facts = draw_facts(data, attested, now)
    decision = decide(*facts)
    removed = {route for stage in decision.stages for route in stage.removed}
    offered = {*facts[3]}
    chosen = {decision.route, *decision.alternatives} - {Route.REFUSED}
    assert chosen == offered - removed
    assert decision.route not in decision.alternatives
    assert (decision.route is Route.REFUSED) == (not chosen)
    assert [stage.stage for stage in decision.stages] == sorted(s.stage for s in decision.stages)


@given(st.data())
def test_the_device_floor_never_leaves_whatever_else_holds(
    attested: Callable[[Assurance], AttestationResult], now: int, data: st.DataObject
) -> None:
    facts = draw_facts(data, attested, now)
    decision = decide(*facts)
    if strictest(*facts[:3]) is Privacy.DEVICE or "4111" in str(facts[0].messages):
        assert decision.route in (Route.DEVICE, Route.REFUSED)
        assert decision.alternatives == ()


@given(st.data())
def test_the_attested_floor_leaves_only_for_verified_hardware(
    attested: Callable[[Assurance], AttestationResult], now: int, data: st.DataObject
) -> None:
    """Under the floor `attested` a prompt leaves only for hardware whose evidence was verified."""
    facts = draw_facts(data, attested, now)
    decision = decide(*facts)
    reachable = {decision.route, *decision.alternatives}
    result = facts[1].attestation
    if Route.CLOUD in reachable:
        assert result is not None
        assert result.accepted_until > facts[1].now_unix
        assert strictest(*facts[:3]) is Privacy.ANY or result.satisfies_attested
    if Route.THIRD_PARTY in reachable:
        assert strictest(*facts[:3]) is Privacy.ANY
        assert facts[1].grant is not None


@given(st.data())
def test_equal_facts_give_equal_decisions(
    attested: Callable[[Assurance], AttestationResult], now: int, data: st.DataObject
) -> None:
    facts = draw_facts(data, attested, now)
    assert decide(*facts) == decide(*facts)


@given(st.data())
def test_contributions_are_exact_and_the_record_is_complete(
    attested: Callable[[Assurance], AttestationResult], now: int, data: st.DataObject
) -> None:
    facts = draw_facts(data, attested, now)
    decision = decide(*facts)
    assert decision.policy_sha256 == facts[2].sha256
    if decision.route is not Route.REFUSED:
        numbers = decision.stages[-1].numbers
        assert sum(decision.contributions.values()) == numbers["gain"]
        assert numbers["threshold"] == decision.threshold
        assert decision.p_device_right == numbers["p_device_right"]


@given(st.data())
def test_no_prompt_text_is_in_the_record(
    attested: Callable[[Assurance], AttestationResult], now: int, data: st.DataObject
) -> None:
    record = json.dumps(asdict(decide(*draw_facts(data, attested, now))))
    assert not [word for word in (*SECRET.split("-"), "hello", "clock", "wer ") if word in record]


def test_the_pin_of_a_caller_is_kept_or_refused(
    route_of: Callable[..., RouteDecision],
    ask: Callable[..., Request],
    situation: Situation,
) -> None:
    for pin in (Route.DEVICE, Route.CLOUD):
        decision = route_of(ask("12"), replace(situation, pinned=pin))
        assert (decision.route, decision.reason) == (pin, RouteReason.PINNED)
        assert decision.alternatives == ()
    pinned = replace(situation, pinned=Route.CLOUD)
    assert route_of(ask("12", privacy=Privacy.DEVICE), pinned).route is Route.REFUSED
