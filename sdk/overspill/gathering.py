"""What a session can choose from, and the situation that a decision weighs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from overspill.cloud_gate import CloudGate, CloudState
from overspill.conversations import Conversations
from overspill.engines.base import Engine
from overspill.errors import (
    EngineError,
    ModelError,
    ModelNotFound,
    OverspillError,
    PolicyRefusal,
)
from overspill.hedging import HedgeShare
from overspill.lengths import AnswerLengths
from overspill.pace import Timing
from overspill.profile import DeviceMeter
from overspill.providers.granted import GrantedEngine
from overspill.routing.policy import RoutingPolicy
from overspill.routing.privacy import floor_of
from overspill.routing.situation import Situation
from overspill.state.receipts import ReceiptStore
from overspill.state.spending import SpendingStore
from overspill.types.card import ModelCard
from overspill.types.chat import Finish, Privacy, Request
from overspill.types.route import DeviceProfile, NetworkState, Route

PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Routes:
    """The engines, the rules and the memory that all sessions of one client share."""

    device: Engine | None
    cloud: CloudGate
    policy: RoutingPolicy
    floor: Privacy
    receipts: ReceiptStore
    conversations: Conversations
    meter: DeviceMeter
    lengths: AnswerLengths = field(default_factory=AnswerLengths)
    hedges: HedgeShare = field(default_factory=HedgeShare)
    spending: SpendingStore = field(default_factory=SpendingStore)
    third_party: GrantedEngine | None = None


@dataclass(frozen=True, slots=True)
class Gathered:
    """A situation with the cards of the models that are candidates in it."""

    situation: Situation
    cards: Mapping[Route, ModelCard]
    cloud: CloudState


async def gather(routes: Routes, request: Request) -> Gathered:
    """Look at device, cloud and conversation. Under the floor ``device`` nothing is contacted.

    Raises ``ModelNotFound`` when the request names a model that is on no route, and
    ``PolicyRefusal`` when the floor forbids to look for it elsewhere.
    """
    memory = routes.conversations.recall(request)
    stays = floor_of(request, routes.floor, memory, routes.policy) is Privacy.DEVICE
    cloud = CloudState() if stays else await routes.cloud.state(_patience_s(routes, request))
    cards = _cards(routes, cloud, request.model)
    if routes.third_party is not None:
        cards[Route.THIRD_PARTY] = routes.third_party.card
    tokens, device_problem = await _count(routes.device, request)
    if device_problem is not None and Route.CLOUD not in cards:
        raise device_problem
    situation = Situation(
        device=_device_profile(routes, tokens or 0),
        network=_network(routes, cards, tokens or 0),
        prompt_tokens={} if tokens is None else {Route.DEVICE: tokens},
        attestation=cloud.result,
        session_floor=routes.floor,
        memory=memory,
        unavailable=_unavailable(device_problem, cloud),
        pinned=_pinned(request.model, cards, routes, cloud, stays=stays),
        device_loaded=routes.device is not None,
        now_unix=int(time.time()),
        grant=request.grant,
        answer=routes.lengths.expected(request),
        hedged_share=routes.hedges.share,
    )
    return Gathered(situation, cards, cloud)


def _device_profile(routes: Routes, context_tokens: int) -> DeviceProfile:
    if routes.device is not None:
        routes.meter.use(routes.device.card)
    return routes.meter.profile(context_tokens)


def _network(routes: Routes, cards: Mapping[Route, ModelCard], context_tokens: int) -> NetworkState:
    if Route.CLOUD not in cards:
        return NetworkState()
    name = cards[Route.CLOUD].name
    return routes.cloud.meter.network(name, context_tokens, time.monotonic())


def observe(
    routes: Routes, request: Request, route: Route, finish: Finish, timing: Timing, beside: int = 0
) -> None:
    """Learn from an answer that ended: how fast its route was, beside how many others, and how
    long such answers are."""
    routes.lengths.observe(request, finish.usage)
    if route is Route.DEVICE:
        routes.meter.observe(finish.usage, beside)
    elif route is Route.CLOUD:
        routes.cloud.meter.observe(finish, timing, time.monotonic())


def _patience_s(routes: Routes, request: Request) -> float | None:
    """A request that the device can answer does not wait long for a cloud that is silent."""
    device = routes.device.card.name if routes.device else None
    return PATIENCE_S if device is not None and request.model in (None, device) else None


async def _count(
    device: Engine | None, request: Request
) -> tuple[int | None, OverspillError | None]:
    """The prompt's tokens, or what keeps the device from answering at all."""
    if device is None:
        return None, None
    try:
        return await device.count_prompt_tokens(request), None
    except (EngineError, ModelError) as error:
        return None, error


def _cards(routes: Routes, cloud: CloudState, model: str | None) -> dict[Route, ModelCard]:
    cards = {}
    if routes.device is not None:
        cards[Route.DEVICE] = routes.device.card
    if cloud.cards:
        served = {card.name: card for card in cloud.cards}
        cards[Route.CLOUD] = served.get(model or "", cloud.cards[0])
    elif cloud.problem is not None and routes.cloud.engine is not None:
        cards[Route.CLOUD] = routes.cloud.engine.card  # a candidate, taken away with the reason
    return cards


def _unavailable(device: OverspillError | None, cloud: CloudState) -> dict[Route, str]:
    problems = {Route.DEVICE: device, Route.CLOUD: cloud.problem}
    return {route: problem.code for route, problem in problems.items() if problem is not None}


def _pinned(
    model: str | None,
    cards: Mapping[Route, ModelCard],
    routes: Routes,
    cloud: CloudState,
    *,
    stays: bool,
) -> Route | None:
    """The route of the model that the request names; None when it names none."""
    if model is None:
        return None
    for route, card in cards.items():
        if card.name == model:
            return route
    if cloud.problem is not None:  # it may well serve the model: the reason is the problem
        return Route.CLOUD
    if stays and routes.cloud.engine is not None:
        raise PolicyRefusal(
            f"There is no model '{model}' on this device, and the privacy floor keeps it there.",
            mend="Name a model of the device, or allow a weaker floor for this request.",
        )
    raise ModelNotFound.among(model, {card.name for card in (*cards.values(), *cloud.cards)})
