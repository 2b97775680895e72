"""How long a decision takes: stages 0 to 4, everything included, one prompt after another.

The situation is one in which every stage has something to do: the cloud's evidence was accepted,
prompts are counted, both routes' speeds are known.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from overspill.routing.complexity import Scorer
from overspill.routing.decide import decide
from overspill.routing.policy import RoutingPolicy
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Message, Request
from overspill.types.evidence import Assurance
from overspill.types.route import DeviceProfile, NetworkState, Route

_WARM_UP = 20
_CHARS_PER_TOKEN = 4
_NOW_UNIX = 1_800_000_000
_DEVICE = DeviceProfile(900.0, 40.0, prefill_slow_tokens_per_s=600.0, decode_slow_tokens_per_s=30.0)
_NETWORK = NetworkState(
    rtt_s=0.05, rtt_slow_s=0.12, prefill_tokens_per_s=9000.0, decode_tokens_per_s=80.0
)


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What a verifier's result would say of a node in hardware, for the next hour."""

    assurance: Assurance = Assurance.HARDWARE_TEE
    accepted_until: int = _NOW_UNIX + 3600
    satisfies_attested: bool = True


def _situation(prompt: str) -> Situation:
    return Situation(
        device=_DEVICE,
        network=_NETWORK,
        prompt_tokens={Route.DEVICE: 1 + len(prompt) // _CHARS_PER_TOKEN},
        attestation=_Evidence(),
        now_unix=_NOW_UNIX,
    )


def decision_us(scorer: Scorer, prompts: Sequence[str], count: int, seed: int) -> dict[str, float]:
    """p50 and p99 of ``routing.decide`` in microseconds, over a sample of the prompts."""
    rows = np.random.default_rng(seed).permutation(len(prompts))[:count]
    cards = {
        route: ModelCard(name=name, context=1 << 20, runtime="evaluation")
        for route, name in zip((Route.DEVICE, Route.CLOUD), scorer.fitted_for, strict=True)
    }
    policy = RoutingPolicy()
    taken = []
    for row in (*rows[:_WARM_UP], *rows):
        request, situation = Request((Message("user", prompts[row]),)), _situation(prompts[row])
        start = time.perf_counter_ns()
        decide(request, situation, policy, cards, scorer=scorer)
        taken.append((time.perf_counter_ns() - start) / 1e3)
    p50, p99 = np.quantile(taken[min(_WARM_UP, len(rows)) :], [0.5, 0.99])
    return {"p50": float(p50), "p99": float(p99)}
