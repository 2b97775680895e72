"""How often a decision flips when a prompt is asked in other words that change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from overspill.evals.fit import Design, features_of
from overspill.evals.predict import predict
from overspill.routing.complexity import Scorer

PARAPHRASES: dict[str, Callable[[str], str]] = {
    "politeness": lambda text: f"Could you please help me with this? {text} Thank you!",
    "label": lambda text: f"Question: {text}",
    "capitals": lambda text: text.lower(),
    "contractions": lambda text: text.replace(" is not ", " isn't ").replace("What is", "What's"),
    "closing": lambda text: f"{text.rstrip()} Think carefully before you answer.",
}
"""Mechanical ones, whose meaning is certainly the same: a lower bound of what people's do."""


def flips(scorer: Scorer, prompts: Sequence[str], count: int, seed: int) -> dict[str, float]:
    """The share of decisions that change at a threshold which half of the prompts exceed."""
    rows = np.random.default_rng(seed).permutation(len(prompts))[:count]
    asked = [prompts[i] for i in rows]
    plain = _gain(scorer, asked)
    threshold = float(np.median(plain))
    found = {
        name: float(
            ((_gain(scorer, [change(p) for p in asked]) > threshold) != (plain > threshold)).mean()
        )
        for name, change in PARAPHRASES.items()
    }
    return {**found, "mean": sum(found.values()) / len(found)}


def _gain(scorer: Scorer, prompts: Sequence[str]) -> np.ndarray:
    features = features_of(prompts, scorer.buckets)
    return predict(scorer, Design.of(features), features).gain
