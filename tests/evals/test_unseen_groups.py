"""What is carried over to groups that no fit has met: the length, where it is certain."""

from __future__ import annotations

import numpy as np

from overspill.evals.data import Results
from overspill.evals.fit import Design, FitOptions, Task, features_of, fit
from overspill.evals.metrics import Outcomes
from overspill.evals.routing_eval import EvalOptions, evaluate


def test_the_length_is_carried_over_where_it_holds_across_groups() -> None:
    rng = np.random.default_rng(3)
    prompts, groups, gain = [], [], []
    for group in range(12):
        for _ in range(30):
            words = 5 + 4 * group + int(rng.integers(0, 4))
            prompts.append(" ".join(f"g{group}w{rng.integers(0, 50)}" for _ in range(words)))
            groups.append(f"group {group}")
            gain.append(rng.random() < (0.1 + 0.07 * group))
    targets = np.column_stack([1.0 - np.array(gain, dtype=float), np.ones(len(gain))])
    task = Task(Design.of(features_of(prompts, 8192)), targets, groups)
    (scorer,) = fit(task, FitOptions(), pair=("a", "b"), unseen_groups=True)
    slope = scorer.structure.get("shape.words", (0.0, 0.0))
    assert slope[1] - slope[0] > 0.1


def test_groups_that_are_left_out_are_put_beside_each_other_as_the_confidence_does() -> None:
    """Each fit has met other groups, with another prior and another curve: what its gains mean
    is another thing in each."""
    rng = np.random.default_rng(4)
    groups = [f"group {n % 4}" for n in range(400)]
    confidence = rng.random(400)
    gap = np.array([0.2 + 0.2 * (n % 4) for n in range(400)])
    small = (rng.random(400) < 1 - gap * (1 - confidence) * 2).astype(float)
    words = rng.integers(0, 2000, (400, 8))
    prompts = tuple(" ".join(f"w{word}" for word in row) for row in words)
    outcomes = Outcomes(small, np.ones(400))
    data = Results(prompts, outcomes, tuple(groups), confidence)
    options = EvalOptions(
        resamples=5, timed=5, paraphrased=5, fit=FitOptions(buckets=1024, ridges=(20.0,))
    )
    report = evaluate(data, None, options)
    assert report["router"]["apgr"] >= report["baselines"]["confidence"]["apgr"] - 0.01
