"""Who answers the prompts of a set: the device's engine alone, the proven cloud, or the policy.

The device's engine is asked directly, with a watch: what a monitor would see of each token comes
with the answer, and nothing escalates. A cloud tells log-probabilities only: its signals have no
entropy.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from overspill.client import AsyncOverspill
from overspill.config import Settings
from overspill.engines.base import Engine
from overspill.errors import ConfigurationError, EngineError
from overspill.opening import open_device
from overspill.types.card import ModelCard
from overspill.types.chat import Chunk, Request, TokenLogprob, TokenSignal, ToolCall, Watch
from overspill.types.reply import Reply
from overspill.types.route import RouteTaken
from overspill.types.usage import Usage

Place = Literal["device", "cloud", "policy"]
PLACES: tuple[Place, ...] = ("device", "cloud", "policy")
_STATE_SPAN = 2_000
"""State logits are those of ids below this: a BPE's earliest merges, which every text trains."""
_ALTERNATIVES = 2
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class SignalOptions:
    """Signals of the first ``tokens`` tokens; ``state_logits`` logits after the prompt."""

    tokens: int = 129
    state_logits: int = 0

    @property
    def watch(self) -> Watch:
        """What a local engine is asked for."""
        return Watch(self.tokens, state_ids(self.state_logits))


def state_ids(count: int) -> tuple[int, ...]:
    """The token ids whose logits are logged: so many, evenly over the first 2,000."""
    step = max(1, _STATE_SPAN // max(1, count))
    return tuple(n * step for n in range(count))


@dataclass(frozen=True, slots=True)
class Played:
    """One answer. ``signals`` has equally long columns; ``confidence`` is the mean log-probability
    of the tokens that came with signals; ``route`` is None where an engine was asked directly."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    usage: Usage
    finish_reason: str
    card: ModelCard
    ttft_s: float | None
    total_s: float
    signals: Mapping[str, Any]
    confidence: float | None
    route: RouteTaken | None = None


class Player(Protocol):
    """Answers requests, several at once. Raises typed errors."""

    async def answer(self, request: Request) -> Played:
        """The whole answer."""
        ...


@dataclass(frozen=True, slots=True)
class EnginePlayer:
    """Asks one engine, and watches it."""

    engine: Engine
    options: SignalOptions

    async def answer(self, request: Request) -> Played:
        """The engine's answer."""
        started, first = time.perf_counter(), None
        chunks: list[Chunk] = []
        watched = replace(request, watch=self.options.watch)
        async with aclosing(self.engine.generate(watched)) as stream:
            async for chunk in stream:
                if first is None and (chunk.text or chunk.tool_calls):
                    first = time.perf_counter() - started
                chunks.append(chunk)
        finish = chunks[-1].finish
        if finish is None:  # Engine.generate would have raised already
            raise EngineError("The answer has no end.")
        signals = [signal for chunk in chunks for signal in chunk.signals]
        return Played(
            text="".join(chunk.text for chunk in chunks),
            tool_calls=tuple(call for chunk in chunks for call in chunk.tool_calls),
            usage=finish.usage,
            finish_reason=finish.reason.value,
            card=self.engine.card,
            ttft_s=first,
            total_s=time.perf_counter() - started,
            signals=_watched(signals),
            confidence=_mean([signal.logprob for signal in signals]),
        )


@dataclass(frozen=True, slots=True)
class ClientPlayer:
    """Asks a client: by its policy, or the model that is named."""

    client: AsyncOverspill
    options: SignalOptions
    model: str | None = None
    cards: Mapping[str, ModelCard] = field(default_factory=dict)

    async def answer(self, request: Request) -> Played:
        """The client's answer."""
        asked = replace(request, model=self.model, top_logprobs=_ALTERNATIVES)
        reply: Reply = await self.client.collect(asked)
        kept = reply.logprobs[: self.options.tokens]
        return Played(
            text=reply.text,
            tool_calls=reply.tool_calls,
            usage=reply.usage,
            finish_reason=reply.finish_reason.value,
            card=self.cards.get(reply.model) or ModelCard(reply.model, 0, "unknown"),
            ttft_s=reply.ttft_s,
            total_s=reply.total_s,
            signals=_told(kept),
            confidence=_mean([one.logprob for one in kept]),
            route=reply.route,
        )


@asynccontextmanager
async def open_player(
    place: Place, settings: Settings, options: SignalOptions
) -> AsyncGenerator[Player]:
    """The player of a place. Raises what keeps it from answering: ``ModelNotFound``,
    ``DoesNotFit``, a cloud's problem, ``ConfigurationError``."""
    if place == "device":
        async with open_device(settings) as engine:
            yield EnginePlayer(engine, options)
        return
    async with AsyncOverspill(app="evals", settings=settings, daemon="never") as client:
        model = None
        if place == "cloud":
            state = await client.cloud_state()
            if state.problem is not None:
                raise state.problem
            if not state.cards:
                raise ConfigurationError("There is no cloud to ask.", mend="Add --cloud HOST:PORT.")
            model = state.cards[0].name
        cards = {card.name: card for card in await client.models()}
        yield ClientPlayer(client, options, model, cards)


def _watched(signals: Sequence[TokenSignal]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "token_ids": [s.token_id for s in signals],
        "logprobs": [round(s.logprob, _DIGITS) for s in signals],
        "margins": [round(s.margin, _DIGITS) for s in signals],
        "entropies": [round(s.entropy, _DIGITS) for s in signals],
    }
    if signals and signals[0].state:
        found["state"] = [round(value, _DIGITS) for value in signals[0].state]
    return found


def _told(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "token_ids": [one.token_id for one in logprobs],
        "logprobs": [round(one.logprob, _DIGITS) for one in logprobs],
        "margins": [
            round(one.top[0][2] - one.top[1][2], _DIGITS) if len(one.top) > 1 else None
            for one in logprobs
        ],
        "entropies": [None] * len(logprobs),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
