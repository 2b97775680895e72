"""Runs one planned step: compute, choose, accept, and measure what it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from overspill.engines.answer_stream import AnswerStream
from overspill.engines.backend import Backend, BatchRow, Rests
from overspill.engines.generation import Generation
from overspill.engines.machine_load import ThreadControl
from overspill.engines.sampling import choose_tokens
from overspill.engines.speculation import Speculator, check_draft
from overspill.engines.step_costs import StepCosts
from overspill.types.chat import Chunk, merge_chunks

if TYPE_CHECKING:
    from overspill.engines.backend import Logits

Batch = Sequence[tuple[Generation, BatchRow]]


class StepRunner:
    """Computes a batch and hands each sequence's chunk to ``deliver``.

    ``run`` raises what the backend raises; who got a chunk before that keeps it. Those who
    ended are marked so and still hold their slots.
    """

    def __init__(
        self,
        backend: Backend,
        costs: StepCosts,
        speculator: Speculator | None = None,
        threads: ThreadControl | None = None,
        *,
        adapters: bool,
        deliver: Callable[[AnswerStream, Chunk], None],
        clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._costs = costs
        self._speculator = speculator
        self._threads = threads
        self._adapters = adapters
        self._deliver = deliver
        self._clock = clock

    def run(self, batch: Batch) -> None:
        """One step. The planner gives all rows of it one adapter."""
        rows, prompt_tokens = _count(batch)
        started_s = self._clock()
        if self._adapters:
            self._backend.use_adapter(batch[0][0].adapter)
        logits = self._backend.run([row for _, row in batch])
        if self._speculator is not None and any(row.outputs > 1 for _, row in batch):
            self._take_drafts(self._speculator, batch, logits)
        else:
            self._take(batch, logits)
        took_s = self._clock() - started_s
        self._costs.note(rows, prompt_tokens, took_s)
        if self._threads is not None and self._threads.after_step(rows, prompt_tokens, took_s):
            # All steps take another time from now on.
            self._costs.distrust()
            if self._speculator is not None:
                self._speculator.set_threads(self._threads.threads)

    def rest(self) -> None:
        """No step comes for a while."""
        if isinstance(self._backend, Rests):
            self._backend.rest()
        if self._threads is not None:
            self._threads.rest()

    def resume(self) -> None:
        """Steps come again."""
        if self._threads is not None:
            self._threads.resume()

    def _take(self, batch: Batch, logits: Logits) -> None:
        """One token for each whose prompt is computed."""
        ready = [generation for generation, row in batch if row.wants_logits]
        choices = choose_tokens(
            [g.sampler for g in ready], logits, [g.next_position for g in ready]
        )
        now_s = self._clock()
        for generation, row in batch:
            generation.computed += len(row.tokens)
        for generation, choice in zip(ready, choices, strict=True):
            self._deliver(generation.stream, generation.accept(choice, self._backend, now_s))

    def _take_drafts(self, speculator: Speculator, batch: Batch, logits: Logits) -> None:
        """All tokens that each draft got right, and one more; the rest is taken back."""
        now_s = self._clock()
        at = 0
        for generation, row in batch:
            rows = logits[at : at + row.outputs]
            if not generation.is_decoding:
                at += self._go_on(generation, row, rows, now_s)
                continue
            at += row.outputs
            chunks = check_draft(generation, row, rows, self._backend, now_s)
            generation.computed += len(chunks)
            if len(chunks) < row.outputs:
                self._backend.forget(generation.slot, generation.computed)
            if row.outputs > 1:
                speculator.note(generation, row.outputs - 1, len(chunks) - 1)
            self._deliver(generation.stream, merge_chunks(chunks))

    def _go_on(self, generation: Generation, row: BatchRow, rows: Logits, now_s: float) -> int:
        """A prompt that was computed further; returns how many rows of logits were its."""
        generation.computed += len(row.tokens)
        if not row.wants_logits:
            return 0
        chunks = check_draft(generation, row, rows[:1], self._backend, now_s)
        self._deliver(generation.stream, merge_chunks(chunks))
        return 1


def _count(batch: Batch) -> tuple[int, int]:
    """Decoding rows and prompt tokens of a step."""
    rows = prompt_tokens = 0
    for generation, row in batch:
        if generation.is_decoding:
            rows += len(row.tokens)
        else:
            prompt_tokens += len(row.tokens)
    return rows, prompt_tokens
