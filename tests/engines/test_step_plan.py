"""What a step computes: how long a chunk of a prompt is beside those who decode."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.options import SchedulerOptions
from overspill.engines.step_costs import StepCosts
from overspill.engines.step_plan import (
    GROUPED_PAST_TOKENS,
    MIN_CHUNK_TOKENS,
    MOST_YIELDED_STEPS,
    SHORT_TOKENS_A_ROW,
    StepPlanner,
    _in_groups,
)

GROUPING_TOKENS = 3
"""So many more, at most, fill a group of four or of sixteen rows."""


@given(st.integers(0, 600))
def test_a_chunk_fills_groups_of_rows_that_are_computed_together(tokens):
    found = _in_groups(tokens)
    assert found % 4 == 0
    assert tokens - 1 <= found <= tokens + GROUPING_TOKENS
    assert found % 16 == 0 or tokens % 16 < 13


def test_behind_a_long_past_a_chunk_is_no_longer_than_its_time_allows(stepped):
    """Beside five rows there is time for seven tokens and a half."""
    taken = []
    for past in (GROUPED_PAST_TOKENS, GROUPED_PAST_TOKENS + 1):
        writers = [stepped.generation(n, [1] * 8, computed=8) for n in range(5)]
        long = stepped.generation(5, [1] * 4000, computed=past)
        planner = StepPlanner(SchedulerOptions(), _costs(0.004, 0.002), batch_tokens=512)
        taken += _taken(planner.plan([*writers, long], deque([long])), long)
    assert taken == [8, 7]


@given(decoding=st.integers(1, 15), waiting=st.integers(1, 15))
def test_a_step_with_prompts_stays_near_what_it_takes_once_all_decode(decoding, waiting, stepped):
    costs, options = StepCosts(), SchedulerOptions(prefill_stretch=2.5, prefill_chunk_tokens=48)
    row_s, fixed_s = 0.002, 0.01
    for rows in range(1, 32):
        costs.note(rows, 0, fixed_s + row_s * rows)
    costs.note(0, 512, 512 * row_s)
    writers = [stepped.generation(n, [1] * 8, computed=8) for n in range(decoding)]
    newcomers = [stepped.generation(decoding + n, [1] * 64) for n in range(waiting)]
    planner = StepPlanner(options, costs, batch_tokens=512)
    batch = planner.plan([*writers, *newcomers], deque(newcomers))
    prompt_tokens = sum(len(row.tokens) for _, row in batch[decoding:])
    took_s = fixed_s + row_s * (decoding + prompt_tokens)
    joined_s = fixed_s + row_s * (decoding + waiting)
    assert [row.tokens for _, row in batch[:decoding]] == [[1]] * decoding
    # A chunk of each, or as much as the stretch allows, to the nearest whole group of rows.
    stretched_s = 2.5 * joined_s + GROUPING_TOKENS * row_s + 1e-9
    assert took_s <= stretched_s or prompt_tokens == MIN_CHUNK_TOKENS
    assert prompt_tokens == 48 * waiting or took_s >= 2.5 * joined_s - 3 * row_s - fixed_s


@given(
    decoding=st.integers(4, 15),
    again_s=st.floats(0.0, 0.01),
    token_s=st.floats(0.002, 0.006),
)
def test_a_long_prompt_keeps_steps_near_that_where_short_chunks_are_dear(
    decoding, again_s, token_s, stepped
):
    """A chunk costs a second pass over the weights, and more a token than a whole prompt does."""
    costs, options = StepCosts(), SchedulerOptions()
    for rows in range(1, 32):
        costs.note(rows, 0, 0.01 + 0.002 * rows)
    costs.note(0, 512, 512 * 0.001)
    writers = [stepped.generation(n, [1] * 8, computed=8) for n in range(decoding)]
    newcomer = stepped.generation(decoding, [1] * 4000)
    planner = StepPlanner(options, costs, batch_tokens=512)
    for _ in range(40):
        batch = planner.plan([*writers, newcomer], deque([newcomer]))
        chunk = sum(len(row.tokens) for _, row in batch[decoding:])
        took_s = 0.01 + 0.002 * decoding + again_s + token_s * chunk
        costs.note(decoding, chunk, took_s)
    joined_s = 0.01 + 0.002 * (decoding + 1)
    stretched_s = 1.1 * options.prefill_stretch * joined_s + GROUPING_TOKENS * token_s
    assert took_s <= stretched_s or chunk == MIN_CHUNK_TOKENS


def _costs(row_s, fixed_s):
    costs = StepCosts()
    for rows in range(1, 32):
        costs.note(rows, 0, fixed_s + row_s * rows)
    costs.note(0, 512, 512 * row_s)
    return costs


def _go_on(batch):
    """As the step runner does it."""
    for generation, row in batch:
        if not generation.is_decoding:
            generation.computed += len(row.tokens)


def _taken(batch, *generations):
    return [sum(len(row.tokens) for g, row in batch if g is one) for one in generations]


@given(decoding=st.integers(2, 15), steps_due=st.integers(1, 3), less=st.integers(0, 7))
def test_a_short_prompt_behind_a_long_one_has_its_token_in_a_step_or_two(
    decoding, steps_due, less, stepped
):
    """32 tokens beside eight rows take one. Where chunks beside decoding are so dear that the long
    one goes on by a row a step."""
    costs = _costs(row_s=0.001, fixed_s=0.02)
    for _ in range(20):
        costs.note(decoding, 1, 1.0)
    writers = [stepped.generation(n, [1] * 8, computed=8) for n in range(decoding)]
    long = stepped.generation(decoding, [1] * 8000)
    planner, prefilling = StepPlanner(SchedulerOptions(), costs, batch_tokens=512), deque([long])
    first = planner.plan([*writers, long], prefilling)
    assert _taken(first, long) == [MIN_CHUNK_TOKENS]
    _go_on(first)
    size = SHORT_TOKENS_A_ROW * decoding * steps_due - less
    short = stepped.generation(decoding + 1, [1] * size)
    prefilling.append(short)
    steps = 0
    while not short.is_decoding:
        batch = planner.plan([*writers, long, short], prefilling)
        assert [row.tokens for g, row in batch if g in writers] == [[1]] * decoding
        _go_on(batch)
        steps += 1
    assert steps == steps_due


@given(
    decoding=st.integers(2, 15),
    sizes=st.lists(st.integers(1, 256), min_size=1, max_size=6),
    long=st.booleans(),
)
def test_a_step_is_stretched_for_short_prompts_that_are_done_by_it_and_within_bounds(
    decoding, sizes, long, stepped
):
    row_s, fixed_s = 0.002, 0.03
    options, costs = SchedulerOptions(), _costs(row_s, fixed_s)
    writers = [stepped.generation(n, [1] * 8, computed=8) for n in range(decoding)]
    waiting = [stepped.generation(decoding + n, [1] * size) for n, size in enumerate(sizes)]
    if long:
        waiting.insert(0, stepped.generation(30, [1] * 8000))
    batch = StepPlanner(options, costs, batch_tokens=512).plan([*writers, *waiting], deque(waiting))
    taken = _taken(batch, *waiting)
    idle_s, joined_s = (fixed_s + row_s * n for n in (decoding, decoding + len(waiting)))
    took_s = idle_s + row_s * sum(taken)
    stretched_s = options.short_prompt_stretch * idle_s
    # What a long one may add goes to the nearest whole group of rows.
    joined_s = options.prefill_stretch * joined_s + GROUPING_TOKENS * row_s
    assert took_s <= max(stretched_s, joined_s) + 1e-9
    done = [len(g.prompt) <= tokens for g, tokens in zip(waiting, taken, strict=True)]
    if not any(done):
        least_s = idle_s + row_s * SHORT_TOKENS_A_ROW * decoding
        assert took_s <= max(joined_s, least_s) + 1e-9


def test_a_long_prompt_yields_to_short_ones_for_a_few_steps_and_no_longer(stepped):
    writer = stepped.generation(0, [1] * 8, computed=8)
    long = stepped.generation(1, [1] * 8000)
    planner = StepPlanner(SchedulerOptions(), _costs(0.002, 0.03), batch_tokens=512)
    prefilling, waited, longest = deque([long]), 0, 0
    for number in range(40):  # somebody new each time: there is always a short one
        short = stepped.generation(2 + number % 8, [1] * 200)
        prefilling.append(short)
        batch = planner.plan([writer, *prefilling], prefilling)
        _go_on(batch)
        waited = 0 if _taken(batch, long)[0] else waited + 1
        longest = max(longest, waited)
    assert longest == MOST_YIELDED_STEPS
    assert long.computed > 0


def test_short_prompts_are_done_in_the_order_in_which_they_came(stepped):
    writers = [stepped.generation(n, [1] * 8, computed=8) for n in range(4)]
    waiting = [stepped.generation(4 + n, [1] * 100) for n in range(3)]
    planner = StepPlanner(SchedulerOptions(), _costs(0.002, 0.03), batch_tokens=512)
    prefilling, done = deque(waiting), []
    while prefilling:
        _go_on(planner.plan([*writers, *prefilling], prefilling))
        done += [g for g in waiting if g.is_decoding and g not in done]
    assert done == waiting
