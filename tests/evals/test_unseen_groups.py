"""What is carried over to groups that no fit has met: the length, where it is certain."""

from __future__ import annotations

import numpy as np

from overspill.evals.fit import Design, FitOptions, Task, features_of, fit


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
