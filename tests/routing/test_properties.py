"""What holds of every request: stages only narrow, a tighter floor never widens, and what must stay
stays, whatever goes wrong in the stages behind."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill import AsyncOverspill
from overspill.cloud_gate import CloudState
from overspill.config import load_settings
from overspill.errors import (
    BusyError,
    EngineError,
    OverspillError,
    StreamBroken,
    TrustError,
)
from overspill.routing.complexity import Scorer
from overspill.routing.decide import decide
from overspill.routing.policy import RoutingPolicy
from overspill.routing.session_memory import SessionMemory
from overspill.routing.situation import Situation
from overspill.testing import FakeEngine
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Message, Privacy, Request, Tool
from overspill.types.evidence import Assurance, AttestationResult
from overspill.types.route import DeviceProfile, Grant, NetworkState, Route

ROUTES = (Route.DEVICE, Route.CLOUD, Route.THIRD_PARTY)
CARDS = {
    Route.DEVICE: ModelCard("brook", context=1024, runtime="x", size_bytes=2_000_000),
    Route.CLOUD: ModelCard("river", 4096, "x", tools=True, json_schema=True),
    Route.THIRD_PARTY: ModelCard("big", 8192, "maker", tools=True),
}
floors = st.sampled_from(list(Privacy))
texts = st.sampled_from(
    ["hello", "12345678 and 87654321", "4111 1111 1111 1111", "write to a@b.example", "Wie geht es"]
)
requests = st.builds(
    Request,
    st.lists(texts, min_size=1, max_size=3).map(lambda t: tuple(Message("user", x) for x in t)),
    id=st.just("ab" * 16),
    max_tokens=st.none() | st.integers(1, 9000),
    tools=st.sampled_from([(), (Tool("clock"),)]),
    json_schema=st.sampled_from([None, {"type": "object"}]),
    privacy=floors,
    deadline_s=st.none() | st.floats(0.01, 60),
    redact=st.booleans(),
)
policies = st.builds(
    RoutingPolicy,
    floor=floors,
    threshold=st.floats(-1, 1),
    strict=st.booleans(),
    redact=st.sampled_from([(), ("email",), ("card", "email")]),
)


@st.composite
def situations(draw: st.DrawFn, attested: Callable[..., AttestationResult]) -> Situation:
    now = 1_800_000_000
    assurance = draw(st.none() | st.sampled_from(list(Assurance)))
    return Situation(
        device=DeviceProfile(
            prefill_tokens_per_s=draw(st.none() | st.floats(1, 1e4)),
            decode_tokens_per_s=draw(st.none() | st.floats(1, 1e3)),
            memory_free_bytes=draw(st.none() | st.integers(0, 10_000_000)),
        ),
        network=NetworkState(online=draw(st.booleans())),
        prompt_tokens=draw(st.sampled_from([{}, {Route.DEVICE: 40}, {Route.DEVICE: 5000}])),
        attestation=None if assurance is None else attested(assurance),
        grant=draw(st.sampled_from([None, Grant("maker", "ab" * 16, now + 60)])),
        session_floor=draw(floors),
        memory=draw(st.sampled_from([SessionMemory(), SessionMemory(taint=Privacy.DEVICE)])),
        pinned=draw(st.sampled_from([None, None, *ROUTES])),
        now_unix=now,
    )


def left(decision: Any) -> set[Route]:
    return {decision.route, *decision.alternatives} - {Route.REFUSED}


@given(st.data())
def test_no_stage_gives_back_what_an_earlier_one_took(
    attested: Callable[..., AttestationResult], steep: Scorer, data: st.DataObject
) -> None:
    request, policy = data.draw(requests), data.draw(policies)
    decision = decide(request, data.draw(situations(attested)), policy, CARDS, scorer=steep)
    removed = {route for stage in decision.stages for route in stage.removed}
    assert not left(decision) & removed
    assert left(decision) <= set(CARDS)
    assert (decision.route is Route.REFUSED) == (not left(decision))


@given(st.data())
def test_a_tighter_floor_never_widens_a_route(
    attested: Callable[..., AttestationResult], steep: Scorer, data: st.DataObject
) -> None:
    request, policy = data.draw(requests), data.draw(policies)
    situation, floor = data.draw(situations(attested)), data.draw(floors)
    before = left(decide(request, situation, policy, CARDS, scorer=steep))
    tighter, held = (floor.tightened_by(f) for f in (request.privacy, situation.session_floor))
    for changed in (
        (replace(request, privacy=tighter), situation, policy),
        (
            request,
            replace(situation, session_floor=held),
            policy,
        ),
        (request, situation, replace(policy, floor=policy.floor.tightened_by(floor))),
    ):
        after = decide(*changed, CARDS, scorer=steep)
        if floor is Privacy.DEVICE:
            assert left(after) <= {Route.DEVICE}
        # Where what is left would all be late, the least late is kept: it may be another one,
        # but never one that the floor forbids.
        assert left(after) <= before or any(s.code == "all_late" for s in after.stages)


@given(floors, floors, floors)
def test_contradictory_floors_mean_the_strictest(
    policy: Privacy, session: Privacy, request: Privacy
) -> None:
    """Of the floors of policy, session and request the strictest holds."""
    decision = decide(
        Request((Message("user", "hi"),), privacy=request),
        Situation(session_floor=session),
        RoutingPolicy(floor=policy),
        CARDS,
    )
    (stage,) = [s for s in decision.stages if s.code == "floor"]
    strictest = max((policy, session, request), key=lambda floor: floor.strictness)
    assert stage.detail == strictest


class CountedCloud(FakeEngine):
    """A cloud's engine as a session sees it."""

    def bytes_sent(self, request_id: str) -> int:
        return sum(len(request.messages) for request in self.requests if request.id == request_id)

    def moves(self, request_id: str) -> tuple[str, ...]:
        return ()


class FaultyCloud:
    """Stands where a cloud would: counts whoever comes to it, and gives or fails at random."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.contacts = 0
        self.engine = CountedCloud("from the cloud", name="river")

    async def state(self, patience_s: float | None = None) -> CloudState:
        self.contacts += 1
        return CloudState(problem=StreamBroken("lost"))


class FaultyDevice(FakeEngine):
    """Fails in one way or another, before or after a word."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__("a b c", name="brook", context=64)
        self._chance = chance

    async def count_prompt_tokens(self, request: Request) -> int:
        if self._chance.random() < 0.1:
            raise EngineError("cannot count")
        return await super().count_prompt_tokens(request)

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk]:
        roll = self._chance.random()
        if roll < 0.3:
            error: type[OverspillError] = self._chance.choice([BusyError, EngineError, TrustError])
            self.error, self._error_after = error("injected"), self._chance.randrange(3)
        else:
            self.error = None
        async for chunk in super()._generate(request):
            yield chunk


SECRETS = ["4111 1111 1111 1111", "GB82WEST12345698765432", "sk-proj-abcdefghijklmnopqrstuvwx"]
ALPHABET = "ab 12.,?!\n\t\u200f\u05d0中é{}[]\"'\\\ud800"


def device_only(chance: random.Random) -> dict[str, Any]:
    """Options of a request that must stay: by its own floor, or by what it says."""
    text = "".join(chance.choices(ALPHABET, k=chance.randrange(40)))
    turns: list[dict[str, Any]] = [{"role": "user", "content": text}]
    options: dict[str, Any] = {"privacy": Privacy.DEVICE}
    if chance.random() < 0.5:
        options = {"privacy": chance.choice(list(Privacy))}
        turns.insert(0, {"role": "user", "content": f"x {chance.choice(SECRETS)} y"})
        turns.insert(1, {"role": "assistant", "content": "ok"})
    if chance.random() < 0.3:
        options["tools"] = [{"name": "clock", "description": text[:5], "parameters": {}}]
    if chance.random() < 0.3:
        options["max_tokens"] = chance.choice([1, 3, 5000])
    if chance.random() < 0.2:
        options["deadline_s"] = chance.choice([0.001, 5.0])
    if chance.random() < 0.2:
        options["model"] = chance.choice(["brook", "river", "nobody"])
    if chance.random() < 0.2:
        options["redact"] = True
    return {"messages": turns, **options}


@pytest.mark.anyio
@pytest.mark.timeout(7200)
async def test_nothing_leaves_for_device_only_requests_whatever_fails(tmp_path: Path) -> None:
    """OVERSPILL_FUZZ=100000 runs as many; CI takes fewer."""
    count = int(os.environ.get("OVERSPILL_FUZZ", "1500"))
    chance = random.Random(5)
    config = load_settings(environ={"OVERSPILL_HOME": str(tmp_path)})
    config = replace(config, privacy=Privacy.ANY)
    async with AsyncOverspill("t", settings=config, device=FaultyDevice(chance)) as ai:
        cloud = FaultyCloud(chance)
        ai._own._routes = replace(ai._own._open, cloud=cloud)  # type: ignore[arg-type]  # a fake
        ended = {"answered": 0, "failed": 0}
        for _ in range(count):
            options = device_only(chance)
            redact = options.pop("redact", False)
            try:
                request = replace(ai.build(options.pop("messages"), **options), redact=redact)
                reply = await ai.collect(request)
                assert (reply.route.route, reply.route.bytes_sent) == (Route.DEVICE, 0)
                ended["answered"] += 1
            except OverspillError:
                ended["failed"] += 1
    assert cloud.contacts == 0
    assert cloud.engine.requests == []
    assert min(ended.values()) > count / 10  # both ways were tried, often
