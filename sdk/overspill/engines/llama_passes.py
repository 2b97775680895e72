"""Which rows of a step go to llama.cpp together, where each sequence keeps a cache of its own.

A call takes sequences with rising numbers into one pass over the weights, as many tokens of each as
the shortest row has, and the rest of the longer ones into further passes. In a pass attention is
computed over as many cells for every sequence as the longest of them has: eight decoders of 300
tokens pay for a neighbour's 8,000, each of them. So rows of very different pasts go apart, where
that saves more than another pass over the weights costs.

Weights in the layout of a CPU's instructions are multiplied with four rows at once, and with
sixteen; what is left over goes row by row (``forward_mul_mat`` in llama.cpp's ``repack.cpp``). So
fifteen rows take longer than sixteen, and a chunk of sixteen tokens goes beside eight decoders in a
call of its own: together they are passes of nine and of fifteen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from overspill.engines.backend import BatchRow

PASS_CELLS: Final = 2048
"""A pass over the weights costs about as much as one token's attention to so many cells: a model of
0.5 B takes 15 to 20 ms for the one, and 6.5 us a cell for the other."""
ROW_CELLS: Final = 1000
FOUR_CELLS, SIXTEEN_CELLS = 3000, 10300
"""What rows add to a pass, in the same cells: one by itself, four together, sixteen together. On
x86 chunks of 1, 4, 5, 7, 8, 15 and 16 tokens took 26, 33, 40, 55, 52, 95 and 74 ms. Q8_0 has no
such layout there, and took as long together as apart."""


def calls(rows: Sequence[BatchRow]) -> list[Sequence[int]]:
    """The rows' numbers, call by call; in each call they keep their order."""
    whole = range(len(rows))
    by_length: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        by_length.setdefault(len(row.tokens), []).append(number)
    chosen: list[Sequence[int]] = [whole]
    if len(by_length) > 1:
        apart = list(by_length.values())
        if sum(_cost(rows, part) for part in apart) < _cost(rows, whole):
            chosen = [*apart]
    if len(rows) < 2 or _waste(rows) <= PASS_CELLS:
        return chosen
    return [part for call in chosen for part in _split(rows, call)]


def _split(rows: Sequence[BatchRow], call: Sequence[int]) -> list[Sequence[int]]:
    """The call, or those of short pasts apart from those of long ones, where that costs less."""
    by_cells = sorted(call, key=lambda number: _cells(rows[number]))
    longest, tokens, saved, cut = _cells(rows[by_cells[-1]]), 0, PASS_CELLS, 0
    for count, number in enumerate(by_cells, 1):
        tokens += len(rows[number].tokens)
        saves = tokens * (longest - _cells(rows[number]))
        if saves > saved:
            saved, cut = saves, count
    if not cut:
        return [call]
    parts = sorted(by_cells[:cut]), sorted(by_cells[cut:])
    if sum(_cost(rows, part) for part in parts) >= _cost(rows, call):
        return [call]
    return [smaller for part in parts for smaller in _split(rows, part)]


def _cost(rows: Sequence[BatchRow], call: Sequence[int]) -> int:
    """Of one call, in cells: its passes, their rows, and what their sequences attend to."""
    left = {number: len(rows[number].tokens) for number in call}
    cost = 0
    while left:
        together = _pass(rows, left)
        tokens = min(left[number] for number in together)
        cells = max(_cells(rows[number]) - left[number] + tokens for number in together)
        count = tokens * len(together)
        cost += PASS_CELLS + _rows_cost(count) + count * cells
        for number in together:
            left[number] -= tokens
            if not left[number]:
                del left[number]
    return cost


def _rows_cost(count: int) -> int:
    sixteens, rest = divmod(count, 16)
    fours, single = divmod(rest, 4)
    return sixteens * SIXTEEN_CELLS + fours * FOUR_CELLS + single * ROW_CELLS


def _pass(rows: Sequence[BatchRow], left: dict[int, int]) -> list[int]:
    """Who is in the next pass: as ``llama_batch_allocr::split_equal`` chooses, in order, only
    numbers that rise by one."""
    together: list[int] = []
    for number in left:
        if not together or rows[number].sequence == rows[together[-1]].sequence + 1:
            together.append(number)
    return together


def _cells(row: BatchRow) -> int:
    return row.position + len(row.tokens)


def _waste(rows: Sequence[BatchRow]) -> int:
    """At most what can be saved, in cells."""
    most = max(map(_cells, rows))
    return sum(len(row.tokens) * (most - _cells(row)) for row in rows)
