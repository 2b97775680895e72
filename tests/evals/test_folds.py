"""Folds: nothing is judged by a fit that saw it, or as good as saw it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from overspill.evals.folds import assign_folds, near_duplicates, training_rows

STORY = "A farmer sells 12 eggs at the market for 3 dollars each and feeds 4 of them to his dog"


def test_near_duplicates_share_a_cluster_and_others_do_not() -> None:
    prompts = [
        f"{STORY}. How much does he earn?",
        "What is the capital of France?",
        f"{STORY}. How much  does he EARN?",
        "Sort these numbers in descending order: 4, 9, 1, 7",
    ]
    found = near_duplicates(prompts)
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 3


def test_a_common_preamble_joins_nothing() -> None:
    preamble = "Answer the following question by thinking step by step and put it into a box: "
    prompts = [f"{preamble} why is item {i} {'abcdefghij'[i % 10] * 4} {i * i}?" for i in range(90)]
    assert len(set(near_duplicates(prompts).tolist())) > 80


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(2, 6))
def test_equal_keys_share_a_fold(keys: list[int], count: int) -> None:
    folds = assign_folds(keys, count, seed=0)
    assert len(set(zip(keys, folds.tolist(), strict=True))) == len(set(keys))
    assert len(set(folds.tolist())) == min(count, len(set(keys)))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=2, max_size=60))
def test_nothing_like_the_fold_is_learned_from(rows: list[tuple[int, int]]) -> None:
    clusters, folds = (np.array(column, dtype=np.intp) for column in zip(*rows, strict=True))
    for fold in set(folds.tolist()):
        seen = training_rows(folds, clusters, fold)
        assert fold not in folds[seen]
        assert not set(clusters[seen]) & set(clusters[folds == fold])
