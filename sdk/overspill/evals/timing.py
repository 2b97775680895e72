"""How long a decision takes: stages 0 to 4, everything included, one prompt after another."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from overspill.routing.complexity import Scorer
from overspill.routing.decide import decide
from overspill.routing.policy import RoutingPolicy
from overspill.routing.situation import Situation
from overspill.types.card import ModelCard
from overspill.types.chat import Message, Request
from overspill.types.route import Route

_WARM_UP = 20


def decision_us(scorer: Scorer, prompts: Sequence[str], count: int, seed: int) -> dict[str, float]:
    """p50 and p99 of ``routing.decide`` in microseconds, over a sample of the prompts."""
    rows = np.random.default_rng(seed).permutation(len(prompts))[:count]
    cards = {
        route: ModelCard(name=name, context=1 << 20, runtime="evaluation")
        for route, name in zip((Route.DEVICE, Route.CLOUD), scorer.fitted_for, strict=True)
    }
    situation, policy = Situation(), RoutingPolicy()
    taken = []
    for row in (*rows[:_WARM_UP], *rows):
        request = Request((Message("user", prompts[row]),))
        start = time.perf_counter_ns()
        decide(request, situation, policy, cards, scorer=scorer)
        taken.append((time.perf_counter_ns() - start) / 1e3)
    p50, p99 = np.quantile(taken[min(_WARM_UP, len(rows)) :], [0.5, 0.99])
    return {"p50": float(p50), "p99": float(p99)}
