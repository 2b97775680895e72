"""Stage 4, what counts besides quality: lateness, waiting, money, energy, heat, a road that fails.

Stage 3 says what leaving gains in P(right). Each summand here is in the same unit and says what
leaving gains or costs otherwise, so that one sum decides: *quality - cost - lateness* of the cloud
less that of the device, against the policy's threshold. What was never measured weighs nothing. A
slower device never makes a summand smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

from overspill.errors import ConfigurationError
from overspill.routing.energy import is_hot, joules, scarcity
from overspill.routing.lateness import P95_SIGMAS, STAGE, Estimate, Estimates
from overspill.routing.situation import AnswerLength, Situation
from overspill.types.budget import Left
from overspill.types.card import ModelCard
from overspill.types.chat import Request
from overspill.types.route import Route, StageReason

PURSE = "purse"
TOKENS = "tokens"
_MOST_OVERRUN = 4.0
"""A call that takes five times its share of a chain is as bad as one that takes ten times."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What a policy gives for what is not quality, in points of P(right); 0 turns one off.

    ``late``: an answer that surely misses its deadline. ``second``: a second of waiting.
    ``cost``: one currency unit. ``pace`` and ``purse``: a call that takes twice its share of a
    chain's time, or of its money. ``joule``: a joule from a full battery. ``heat``: computing on a
    device that is about to throttle. ``hedge_share``: at most so many of all requests may be
    started on a second route where the first is late.
    """

    late: float = 1.0
    second: float = 0.005
    cost: float = 1.0
    pace: float = 0.5
    purse: float = 0.25
    joule: float = 0.0002
    heat: float = 0.02
    hedge_share: float = 0.0

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """Read a policy file's ``[prices]``. Raises ``ConfigurationError`` by key."""
        known = [f.name for f in fields(cls)]
        for key, value in table.items():
            if key not in known:
                raise ConfigurationError(
                    f"unknown price {key!r}.", mend=f"Known: {', '.join(known)}."
                )
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigurationError(f"'prices.{key}' has the wrong type.")
        return cls(**{key: float(value) for key, value in table.items()})

    def __post_init__(self) -> None:
        for one in fields(self):
            value, most = getattr(self, one.name), 1.0 if one.name == "hedge_share" else 1e6
            if not 0.0 <= value <= most:
                raise ConfigurationError(
                    f"'prices.{one.name}' is {value}; it must be from 0 to {most:g}."
                )

    def to_table(self) -> dict[str, float]:
        """Inverse of :meth:`from_table`."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def unaffordable(
    request: Request,
    situation: Situation,
    answer: AnswerLength,
    cards: Mapping[Route, ModelCard],
    routes: tuple[Route, ...],
) -> tuple[StageReason, ...]:
    """Routes that may take more than a chain has left are taken away: of money, of tokens."""
    left = request.left
    if left is None:
        return ()
    most = answer.tokens + P95_SIGMAS * answer.sd_tokens
    reasons = []
    if left.cost is not None:
        costs = {route: _cost(route, situation, most, cards) for route in routes}
        away = tuple(route for route, cost in costs.items() if cost > left.cost)
        numbers = {f"{route}_cost": cost for route, cost in costs.items()}
        reasons.append(StageReason(STAGE, PURSE, away, {**numbers, "cost_left": left.cost}))
    if left.tokens is not None:
        prompts = {route: situation.tokens_for(route) or 0 for route in routes}
        away = tuple(route for route, prompt in prompts.items() if prompt >= left.tokens)
        numbers = {f"{route}_prompt_tokens": float(n) for route, n in prompts.items()}
        reasons.append(StageReason(STAGE, TOKENS, away, {**numbers, "tokens_left": left.tokens}))
    return tuple(reasons)


def answer_limit(request: Request, card: ModelCard, prompt_tokens: int) -> int | None:
    """The longest answer by ``card``'s model that a chain can pay for; the request's own
    ``max_tokens`` where that is shorter, or nothing is as scarce. At least 1."""
    left, limits = request.left, []
    if left is not None and left.tokens is not None:
        limits.append(left.tokens - prompt_tokens)
    if left is not None and left.cost is not None and card.price_completion_per_mtok > 0:
        rest = left.cost - card.cost(prompt_tokens, 0)
        limits.append(int(1e6 * rest / card.price_completion_per_mtok))
    own = request.max_tokens
    scarce = max(1, min(limits)) if limits else None
    if scarce is None or (own is not None and own <= scarce):
        return own
    # More than fits is no limit: the engine has its own.
    return scarce if own is not None or prompt_tokens + scarce < card.context else None


class Scales(NamedTuple):
    """What the two routes of a decision are weighed with; ``gain`` is stage 3's, in quality."""

    request: Request
    situation: Situation
    answer: AnswerLength
    known: Estimates
    cards: Mapping[Route, ModelCard]
    prices: Prices

    def tradeoffs(self, remote: Route, gain: float) -> dict[str, float]:
        """What leaving for ``remote`` adds to the gain, by name; summands of 0 are left out."""
        summands = {"failures": -self.situation.network.failure_share * max(0.0, gain)}
        if remote is not Route.CLOUD:
            summands = {}
        device, cloud = self.known.get(Route.DEVICE), self.known.get(remote)
        self._time(device, cloud, summands)
        self._money(remote, summands)
        if device is not None:
            self._energy(device, cloud, summands)
        return {name: value for name, value in summands.items() if value}

    def _time(
        self, device: Estimate | None, cloud: Estimate | None, summands: dict[str, float]
    ) -> None:
        deadline_s, prices = self.request.deadline_s, self.prices
        if deadline_s is not None:
            late = [e.p_over(deadline_s) if e else 0.0 for e in (device, cloud)]
            summands["late"] = prices.late * (late[0] - late[1])
        left = self.request.left
        if left is not None and left.seconds is not None and left.calls > 1:
            share_s = left.seconds / left.calls
            over = [_overrun(e, share_s) if e else 0.0 for e in (device, cloud)]
            summands["pace"] = prices.pace * (over[0] - over[1])
        if device is not None and cloud is not None:
            summands["waiting"] = prices.second * (device.mean_s - cloud.mean_s)

    def _money(self, remote: Route, summands: dict[str, float]) -> None:
        card = self.cards[remote]
        if not card.price_prompt_per_mtok and not card.price_completion_per_mtok:
            return
        cost = _cost(remote, self.situation, self.answer.tokens, self.cards)
        summands["cost"] = -self.prices.cost * cost
        left = self.request.left
        if left is not None and left.cost:
            summands["purse"] = -self.prices.purse * _over_share(cost, left)

    def _energy(self, device: Estimate, cloud: Estimate | None, summands: dict[str, float]) -> None:
        profile = self.situation.device
        counts = scarcity(profile)
        if counts:
            saved = joules(Route.DEVICE, device.mean_s, profile)
            saved -= joules(Route.CLOUD, cloud.mean_s, profile) if cloud else 0.0
            summands["energy"] = self.prices.joule * counts * saved
        if is_hot(profile):
            summands["heat"] = self.prices.heat


def _overrun(estimate: Estimate, share_s: float) -> float:
    """How likely a call takes more than its share of a chain's time, and by how many shares."""
    if share_s <= 0.0:
        return 1.0 + _MOST_OVERRUN
    over = max(0.0, estimate.mean_s / share_s - 1.0)
    return estimate.p_over(share_s) + min(_MOST_OVERRUN, over)


def _over_share(cost: float, left: Left) -> float:
    if not left.cost:
        return _MOST_OVERRUN
    return min(_MOST_OVERRUN, max(0.0, cost * left.calls / left.cost - 1.0))


def _cost(
    route: Route, situation: Situation, answer_tokens: float, cards: Mapping[Route, ModelCard]
) -> float:
    return cards[route].cost(situation.tokens_for(route) or 0, answer_tokens)
