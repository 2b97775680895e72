"""What the next step computes: who writes a token, and whose prompt goes on by how much.

Decoding sequences come first, one token each. What room is left goes to waiting prompts, chunk
by chunk in turn. Beside decoding sequences a chunk is only as long as lets the step stay near
what it takes once all of them decode, by measured times: a long prompt slows the others and never
stops them.
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

MIN_CHUNK_TOKENS = 1
"""A prompt goes on by so many in each step, however much the others have to wait for it. One is
a row more in their pass over the weights, where longer chunks take a second pass."""


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
        rows = sum(len(row.tokens) for _, row in batch)
        room, chunk = self._room(len(batch), rows, len(waiting))
        for _ in range(len(prefilling)):
            if room <= 0:
                break
            generation = prefilling.popleft()
            turn_is_others = bool(self._turns) and generation not in running
            if generation.leader is not None or turn_is_others or generation.waits_for_picture:
                prefilling.append(generation)
                continue
            row = prefill_row(generation, min(room, chunk))
            room -= len(row.tokens)
            batch.append((generation, row))
            if not row.wants_logits:
                prefilling.append(generation)

    def _may_go_on(self, generation: Generation, running: Sequence[Generation]) -> bool:
        return generation.leader is None and (self._turns is None or generation in running)

    def _room(self, decoding: int, rows: int, waiting: int) -> tuple[int, int]:
        """Prompt tokens that this step has room for, and how many one prompt may take of it.

        ``rows`` are those who decode and the tokens of their drafts, which take of that room.
        Measured by the step that comes of it: with few decoding and many waiting, small chunks
        would hold up those who wait, and spare nobody what begins once they decode too.
        """
        room, chunk = self._batch_tokens - rows, self._options.prefill_chunk_tokens
        rate, idle_s = self._costs.beside_tokens_per_s, self._costs.decode_s(rows)
        joined_s = self._costs.decode_s(decoding + waiting)
        if decoding and rate is not None and idle_s is not None and joined_s is not None:
            spare_s = self._options.prefill_stretch * joined_s - idle_s
            room = min(room, max(math.floor(rate * spare_s), MIN_CHUNK_TOKENS))
        return room, chunk


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
