"""Rows that cost each other much go to llama.cpp apart, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.engines import llama_passes
from overspill.engines.backend import BatchRow
from overspill.engines.llama_passes import PASS_CELLS, calls


def row(sequence: int, past: int, tokens: int = 1) -> BatchRow:
    return BatchRow(sequence, past, [7] * tokens, wants_logits=True)


def sequences(rows: list[BatchRow]) -> list[list[int]]:
    return [[rows[number].sequence for number in call] for call in calls(rows)]


def test_decoders_of_like_pasts_go_together() -> None:
    assert sequences([row(n, 100 + 7 * n) for n in range(16)]) == [list(range(16))]


def test_a_long_past_is_nobody_elses_business() -> None:
    assert sequences([*(row(n, 300) for n in range(8)), row(8, 8000)]) == [[*range(8)], [8]]


def test_a_pass_more_must_pay() -> None:
    """Two sequences: to part them costs a pass, and saves the shorter one the difference."""
    assert sequences([row(0, 0), row(1, PASS_CELLS - 8)]) == [[0, 1]]
    assert sequences([row(0, 0), row(1, PASS_CELLS + 8)]) == [[0], [1]]


def test_one_in_the_middle_leaves_two_passes_behind() -> None:
    """Only neighbours share a pass: 0 to 3, 5 to 8 and the long one are three."""
    rows = [row(n, 8000 if n == 4 else 300) for n in range(9)]
    assert sequences(rows) == [[0, 1, 2, 3, 5, 6, 7, 8], [4]]
    near = [row(n, 700 if n == 4 else 300) for n in range(9)]  # 3,200 cells for two passes
    assert sequences(near) == [list(range(9))]


def test_a_chunk_behind_a_long_past_goes_by_itself() -> None:
    rows = [*(row(n, 300) for n in range(8)), row(8, 4000, tokens=16)]
    assert sequences(rows) == [[*range(8)], [8]]


def test_a_chunk_goes_apart_where_that_fills_groups_of_rows() -> None:
    """Eight and sixteen, or four and sixteen, are computed together; nine, fifteen and three are
    not."""
    eight, three = ([row(n, 60) for n in range(count)] for count in (8, 3))
    assert sequences([*eight, row(8, 60, tokens=16)]) == [[*range(8)], [8]]
    assert sequences([*eight, row(8, 60, tokens=17)]) == [[*range(9)]]
    assert sequences([*three, row(3, 60, tokens=17)]) == [[*range(4)]]
    assert sequences([*three, row(3, 60, tokens=19)]) == [[*range(4)]]


@given(
    st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 40)), min_size=0, max_size=12),
    st.permutations(range(12)),
)
def test_each_row_goes_once_in_order_and_never_dearer_than_together(
    parts: list[tuple[int, int]], numbers: list[int]
) -> None:
    rows = [row(number, *part) for number, part in zip(numbers, parts, strict=False)]
    chosen = calls(rows)
    assert sorted(number for call in chosen for number in call) == list(range(len(rows)))
    assert all(list(call) == sorted(call) for call in chosen)
    together = llama_passes._cost(rows, range(len(rows)))
    assert sum(llama_passes._cost(rows, call) for call in chosen) <= together


def test_logits_are_the_same_and_in_the_order_of_the_rows(
    tiny_gguf, monkeypatch: pytest.MonkeyPatch
) -> None:
    from overspill.engines.llama_cpp import LlamaCppBackend, LlamaCppOptions

    # Fused attention adds up in half precision by tiles: with AVX-512 calls differ by 0.005 there.
    options = LlamaCppOptions(
        threads=1, max_sequences=4, context_tokens=256, batch_tokens=256, exact_attention=True
    )
    text = list(range(5, 105))

    def run(cells: int) -> list[np.ndarray]:
        monkeypatch.setattr(llama_passes, "PASS_CELLS", cells)
        backend = LlamaCppBackend(tiny_gguf, name="tiny", options=options)
        try:
            filled = backend.run(
                [
                    BatchRow(0, 0, text[:90], wants_logits=True),
                    BatchRow(1, 0, text[:3], wants_logits=False),
                    BatchRow(2, 0, text[10:14], wants_logits=True),
                ]
            ).copy()
            mixed = backend.run(
                [
                    BatchRow(0, 90, [9], wants_logits=True),
                    BatchRow(1, 3, text[40:60], wants_logits=True, outputs=2),
                    BatchRow(2, 4, [11], wants_logits=True),
                    BatchRow(3, 0, text[60:64], wants_logits=False),
                ]
            ).copy()
        finally:
            backend.close()
        return [filled, mixed]

    together, apart = run(1 << 40), run(1)
    assert [part.shape[0] for part in apart] == [2, 4]
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
        assert (one.argmax(1) == other.argmax(1)).all()
