"""What a step computes: how long a chunk of a prompt is beside those who decode."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.options import SchedulerOptions
from overspill.engines.step_costs import StepCosts
from overspill.engines.step_plan import MIN_CHUNK_TOKENS, StepPlanner


@given(decoding=st.integers(1, 15), waiting=st.integers(1, 15))
def test_a_step_with_prompts_stays_near_what_it_takes_once_all_decode(decoding, waiting, stepped):
    costs, options = StepCosts(), SchedulerOptions(prefill_stretch=2.5)
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
    # All that was asked for, or as much as the stretch allows.
    assert took_s <= 2.5 * joined_s + 1e-9 or prompt_tokens == MIN_CHUNK_TOKENS
    assert prompt_tokens == 64 * waiting or took_s >= 2.5 * joined_s - 2 * row_s - fixed_s


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
    assert took_s <= 1.1 * options.prefill_stretch * joined_s or chunk == MIN_CHUNK_TOKENS
