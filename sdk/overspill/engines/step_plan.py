"""What the next step computes: who writes a token, and whose prompt goes on by how much.

Decoding sequences come first, one token each. What room is left goes to waiting prompts, chunk
by chunk in turn; those of one chunk go before longer ones, which yield for a few steps at most.
Beside decoding sequences a chunk is only as long as lets the step stay near what it takes once all
of them decode, by measured times: a long prompt slows the others and never stops them. A step in
which a short prompt is done may take some more: its first token waits for the step under way and
for its own, and not for as many as a long prompt's small chunks would make of it.
Adapters belong to a whole step: sets of sequences with one adapter take turns.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from overspill.engines.backend import BatchRow
from overspill.engines.generation import Generation
from overspill.engines.options import SchedulerOptions
from overspill.engines.step_costs import StepCosts

Drafts = Mapping[Generation, Sequence[int]]
Propose = Callable[[Sequence[Generation], int], Drafts]
"""Drafts for decoding sequences, at most so many tokens together."""

MIN_CHUNK_TOKENS = 4
"""A prompt goes on by so many in each step, however much the others have to wait for it: by less it
would take most of its time for passes over the weights."""

SHORT_TOKENS_A_ROW = 4
"""A short prompt goes on by so many at least for each row that decodes, however dear the chunks of
a long one have been: a step takes at most about three times as long by that (2.7 times, measured
with a 0.5 B model, eight rows and 32 tokens), and a line of text one or two of them."""

GROUPED_PAST_TOKENS = 1000
"""Behind so many tokens attention takes as long as the weights: a token more costs more there than
it saves by filling a group of rows."""

MOST_YIELDED_STEPS = 3
"""So many steps in a row, at most, do long prompts leave to short ones."""


class StepPlanner:
    """Plans steps; ``prefilling`` is the round of waiting prompts, first come first served."""

    def __init__(
        self,
        options: SchedulerOptions,
        costs: StepCosts,
        *,
        batch_tokens: int,
        adapters: bool = False,
        propose: Propose | None = None,
    ) -> None:
        self._options = options
        self._costs = costs
        self._batch_tokens = batch_tokens
        self._turns = AdapterTurns() if adapters else None
        self._propose = propose
        self._yielded = 0
        """Steps in a row in which a long prompt waited for short ones."""

    def plan(
        self, running: Sequence[Generation], prefilling: deque[Generation]
    ) -> list[tuple[Generation, BatchRow]]:
        """The rows of the next step; empty when nobody can go on."""
        if self._turns is not None:
            running = self._turns.next([g for g in running if not g.waits_for_picture])
        decoding = [g for g in running if g.is_decoding][: self._batch_tokens]
        waiting = len(running) - len(decoding)
        drafts = self._drafts(decoding, waiting)
        batch = [(g, decode_row(g, drafts.get(g, ()))) for g in decoding]
        if waiting:
            self._add_prompts(batch, running, prefilling)
        return _by_slot(batch)

    def _drafts(self, decoding: Sequence[Generation], waiting: int) -> Drafts:
        """As long as they leave each waiting prompt a little room."""
        room = self._batch_tokens - len(decoding) - MIN_CHUNK_TOKENS * waiting
        if self._propose is None or not decoding or room <= 0:
            return {}
        return self._propose(decoding, room)

    def _add_prompts(
        self,
        batch: list[tuple[Generation, BatchRow]],
        running: Sequence[Generation],
        prefilling: deque[Generation],
    ) -> None:
        waiting = [g for g in prefilling if self._may_go_on(g, running)]
        ready = [g for g in waiting if not g.waits_for_picture]
        room = self._room(batch, waiting)
        short = [g for g in ready if self._is_short(g)]
        long = [g for g in ready if not self._is_short(g)]
        if self._yielded < MOST_YIELDED_STEPS:
            given = self._add_short(batch, short, room, prefilling)
            went_on = self._add(batch, long, room - given, prefilling)
        else:
            went_on = self._add(batch, long, room, prefilling)
            self._add(batch, short, room - went_on, prefilling)
        self._yielded = 0 if went_on or not long else self._yielded + 1

    def _add_short(
        self,
        batch: list[tuple[Generation, BatchRow]],
        short: Sequence[Generation],
        room: int,
        prefilling: deque[Generation],
    ) -> int:
        """Short prompts, first come first served; returns how many tokens they took.

        The step is stretched for those who are done by that, and for nobody else."""
        most = self._room_to_be_done(batch, room)
        least = min(most, max(room, SHORT_TOKENS_A_ROW * _rows(batch)))
        given = 0
        for generation in short:
            missing = len(generation.prompt) - generation.computed
            limit = most if given + missing <= most else least
            given += self._add(batch, [generation], limit - given, prefilling)
        return given

    def _add(
        self,
        batch: list[tuple[Generation, BatchRow]],
        prompts: Sequence[Generation],
        room: int,
        prefilling: deque[Generation],
    ) -> int:
        """Chunks of prompts while there is room; returns how many tokens they are. A long one that
        is not done has its next turn behind the others."""
        given = 0
        for generation in prompts:
            if given >= room:
                break
            chunk = min(room - given, self._options.prefill_chunk_tokens)
            row = prefill_row(generation, chunk)
            given += len(row.tokens)
            batch.append((generation, row))
            if row.wants_logits:
                prefilling.remove(generation)
            elif not self._is_short(generation):
                prefilling.remove(generation)
                prefilling.append(generation)
        return given

    def _is_short(self, generation: Generation) -> bool:
        """Whether it came with no more than a chunk to compute. Who came with more goes before
        nobody, though he be nearly done: what surely comes first can be told beforehand."""
        missing = len(generation.prompt) - generation.cached_tokens
        return missing <= self._options.prefill_chunk_tokens

    def _may_go_on(self, generation: Generation, running: Sequence[Generation]) -> bool:
        return generation.leader is None and (self._turns is None or generation in running)

    def _room(
        self, batch: Sequence[tuple[Generation, BatchRow]], waiting: Sequence[Generation]
    ) -> int:
        """Prompt tokens that this step has room for.

        The rows of those who decode, and of their drafts, take of that room. Measured by the step
        that comes of it: with few decoding and many waiting, small chunks would hold up those who
        wait, and spare nobody what begins once they decode too.
        """
        joined_s = self._costs.decode_s(len(batch) + len(waiting))
        within_s = None if joined_s is None else self._options.prefill_stretch * joined_s
        room = self._room_within(batch, within_s, MIN_CHUNK_TOKENS)
        if any(generation.computed > GROUPED_PAST_TOKENS for generation in waiting):
            return room
        return min(_in_groups(room), self._batch_tokens - _rows(batch))

    def _room_to_be_done(self, batch: Sequence[tuple[Generation, BatchRow]], room: int) -> int:
        """The same, at least ``room``, for a step in which a short prompt is done."""
        decode_s = self._costs.decode_s(_rows(batch))
        within_s = None if decode_s is None else self._options.short_prompt_stretch * decode_s
        least = max(room, SHORT_TOKENS_A_ROW * _rows(batch))
        return self._room_within(batch, within_s, least)

    def _room_within(
        self, batch: Sequence[tuple[Generation, BatchRow]], seconds: float | None, least: int
    ) -> int:
        """Prompt tokens for a step of so many seconds, as far as such steps were measured; at
        least ``least``, where the step holds so many."""
        rows = _rows(batch)
        free, rate = self._batch_tokens - rows, self._costs.beside_tokens_per_s
        decode_s = self._costs.decode_s(rows)
        if not batch or rate is None or decode_s is None or seconds is None:
            return free
        return min(free, max(math.floor(rate * (seconds - decode_s)), least))


def _rows(batch: Sequence[tuple[Generation, BatchRow]]) -> int:
    return sum(len(row.tokens) for _, row in batch)


def _in_groups(tokens: int) -> int:
    """The nearest number that fills groups of four, and of sixteen, which CPUs compute together
    (see ``llama_passes``): thirteen tokens take longer than sixteen, and seven than eight."""
    sixteens, rest = divmod(tokens, 16)
    return 16 * (sixteens + 1) if rest > 12 else 16 * sixteens + (rest + 2) // 4 * 4


def _by_slot(batch: list[tuple[Generation, BatchRow]]) -> list[tuple[Generation, BatchRow]]:
    """Neighbouring sequences are computed in one pass (see ``slot_choice``)."""
    return sorted(batch, key=lambda member: member[1].sequence)


class AdapterTurns:
    """Whose turn it is: the adapter that was served longest ago.

    With at most ``n`` adapters running none waits for more than ``n - 1`` steps, whoever joins.
    """

    def __init__(self) -> None:
        self._step = 0
        self._served: dict[str | None, int] = {}

    def next(self, running: Sequence[Generation]) -> Sequence[Generation]:
        """The sequences of the adapter whose turn it is."""
        self._step += 1
        waiting = dict.fromkeys(generation.adapter for generation in running)
        if not waiting:
            return running
        # Who just came waits since now, or newcomers could keep others from their turn.
        self._served = {name: self._served.get(name, self._step) for name in waiting}
        chosen = min(self._served, key=lambda name: self._served[name])
        self._served[chosen] = self._step
        if len(waiting) == 1:
            return running
        return [generation for generation in running if generation.adapter == chosen]


def decode_row(generation: Generation, draft: Sequence[int] = ()) -> BatchRow:
    """The last token, whose logits choose the next one; a draft's behind it, to be checked."""
    tokens = generation.tokens[-1:]
    if draft:
        tokens.extend(draft)
    return BatchRow(generation.slot, generation.computed, tokens, True, len(tokens))


def prefill_row(generation: Generation, limit: int) -> BatchRow:
    """The next tokens of a prompt, at most ``limit``."""
    start = generation.computed
    if generation.pictures is not None:
        return generation.pictures.row(generation.slot, generation.prompt, start, limit)
    tokens = generation.prompt[start : start + limit]
    return BatchRow(
        generation.slot, start, tokens, wants_logits=start + len(tokens) == len(generation.prompt)
    )
