"""Stage 4: what would be late goes elsewhere, and a slower device never keeps more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.routing.lateness import estimates, expected_s
from overspill.routing.lateness import lateness as lateness_of
from overspill.routing.policy import RoutingPolicy
from overspill.routing.situation import Situation
from overspill.types.chat import Message, Privacy, Request
from overspill.types.route import DeviceProfile, Route, RouteDecision, RouteReason, StageReason

BOTH = (Route.DEVICE, Route.CLOUD)
HELLO = Request((Message("user", "hello"),), privacy=Privacy.ANY, max_tokens=100)
speeds = st.floats(0.5, 5000)


def on(prefill: float | None, decode: float | None, tokens: int | None = 40) -> Situation:
    counted = {} if tokens is None else {Route.DEVICE: tokens}
    return Situation(device=DeviceProfile(prefill, decode), prompt_tokens=counted)


def lateness(
    request: Request, situation: Situation, routes: tuple[Route, ...]
) -> tuple[StageReason, ...]:
    return lateness_of(request, estimates(request, situation, routes), routes)


def test_the_time_is_prefill_and_decode() -> None:
    assert expected_s(Route.DEVICE, HELLO, on(20, 10)) == pytest.approx(40 / 20 + 100 / 10)
    assert expected_s(Route.DEVICE, replace(HELLO, max_tokens=None), on(20, 64)) == 4.0
    assert expected_s(Route.DEVICE, replace(HELLO, max_tokens=10**6), on(20, 64)) == 4.0


@pytest.mark.parametrize("case", [on(None, 10), on(20, None), on(20, 10, None), on(0, 10)])
def test_what_nobody_measured_counts_as_in_time(case: Situation) -> None:
    assert expected_s(Route.DEVICE, HELLO, case) is None
    (reason,) = lateness(replace(HELLO, deadline_s=0.001), case, BOTH)
    assert (reason.code, reason.removed) == ("in_time", ())


def test_a_late_device_is_taken_away_with_the_numbers() -> None:
    (reason,) = lateness(replace(HELLO, deadline_s=8.0), on(20, 10), BOTH)
    assert (reason.stage, reason.code, reason.removed) == (4, "deadline", (Route.DEVICE,))
    assert reason.numbers == {"device_s": pytest.approx(12.0), "deadline_s": 8.0}


def test_the_only_route_stays_though_it_is_late() -> None:
    (reason,) = lateness(replace(HELLO, deadline_s=8.0), on(20, 10), (Route.DEVICE,))
    assert (reason.code, reason.removed) == ("all_late", ())
    assert lateness(HELLO, on(20, 10), BOTH) == ()


def test_a_decision_spills_what_the_device_is_too_slow_for(
    route_of: Callable[..., RouteDecision], situation: Situation
) -> None:
    slow = replace(situation, device=DeviceProfile(20, 10))
    decision = route_of(replace(HELLO, deadline_s=8.0), slow)
    assert (decision.route, decision.reason) == (Route.CLOUD, RouteReason.SPILL)
    assert decision.alternatives == ()
    assert decision.stages[-1].stage == 4
    assert route_of(replace(HELLO, deadline_s=13.0), slow).route is Route.DEVICE
    kept = route_of(replace(HELLO, deadline_s=8.0, privacy=Privacy.DEVICE), slow)
    assert (kept.route, kept.reason) == (Route.DEVICE, RouteReason.PRIVACY)


@given(speeds, speeds, st.floats(0.1, 60), st.sampled_from(["hello", "12"]))
def test_a_slower_device_never_keeps_more(
    route_of: Callable[..., RouteDecision],
    situation: Situation,
    prefill: float,
    decode: float,
    deadline_s: float,
    text: str,
) -> None:
    request = replace(HELLO, messages=(Message("user", text),), deadline_s=deadline_s)
    stays = []
    for slowed in (1, 2, 4, 8, 16):
        device = DeviceProfile(prefill / slowed, decode / slowed)
        decision = route_of(request, replace(situation, device=device))
        stays.append(decision.route is Route.DEVICE)
        late = {route for stage in decision.stages for route in stage.removed}
        assert decision.route not in late
    assert stays == sorted(stays, reverse=True)


@given(st.sampled_from(Privacy), st.sampled_from(Privacy), speeds, st.floats(0.1, 60))
def test_a_tighter_floor_never_widens(
    route_of: Callable[..., RouteDecision],
    situation: Situation,
    one: Privacy,
    other: Privacy,
    decode: float,
    deadline_s: float,
) -> None:
    loose, tight = sorted((one, other), key=lambda floor: floor.strictness)
    facts = replace(situation, device=DeviceProfile(100, decode))
    reach = []
    for floor in (loose, tight):
        request = replace(HELLO, deadline_s=deadline_s, privacy=floor)
        decision = route_of(request, facts, RoutingPolicy())
        reach.append({decision.route, *decision.alternatives} - {Route.DEVICE, Route.REFUSED})
    assert reach[1] <= reach[0]
