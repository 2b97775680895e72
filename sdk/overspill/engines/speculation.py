"""Speculation: when drafts are worth checking, and how long ones.

A draft's tokens are computed behind the last token in one step; the sampler then draws the
model's own token at each position, as it would have without the draft, and the draft counts as far
as it agrees. Draws depend on seed and position alone, so this is exact for sampling as it is for
greedy (Leviathan et al., 2023, change the draws and are exact in distribution only).

On a CPU a row more is not free, and few drafts pay. So both sides are measured: what steps cost by
rows, and how many drafted tokens are right; of a lookup that shows without checking any. Pure,
but for the draft model it may ask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from overspill.engines.drafts import Acceptance
from overspill.engines.options import SchedulerOptions
from overspill.engines.sampling import choose_tokens
from overspill.engines.step_costs import StepCosts
from overspill.errors import EngineError

if TYPE_CHECKING:
    from overspill.engines.backend import Backend, BatchRow, Logits
    from overspill.engines.drafts import DraftModel
    from overspill.engines.generation import Generation
    from overspill.types.chat import Chunk

LEAST_GAIN = 1.05
"""So many times the tokens per second a draft must promise."""
MODEL_PRIOR, PRIOR_TRIALS = 0.7, 4.0
"""How often a draft model is right until it was measured, and how much that counts for."""
MEMORY = 0.98
"""Of what was measured, what is left after each further draft, or one that was not even tried."""
RETRY_AFTER = 256
"""Drafts that were not worth it, before larger steps are measured anew."""
READ_SHARE = 0.5
"""Of the time by which a prompt may stretch a step, what a draft model may take to read: the model
may compute a prompt in the same step."""
FIRST_READ_TOKENS, LEAST_READ_TOKENS = 32, 8
"""What it reads until it is known how long that takes; and however much the others have to wait."""
LENGTHS = (3, 7, 11, 15, 23, 31)
"""With the last token they fill groups of four rows, which CPUs compute together (see
``llama_passes``): steps of 3, 4, 16 and 17 rows took 47, 41, 105 and 124 ms."""


def expected_tokens(rate: float, length: int) -> float:
    """Tokens that a step yields which checks a draft: the right ones and the model's own next."""
    if rate >= 1.0:
        return length + 1.0
    return (1.0 - rate ** (length + 1)) / (1.0 - rate)


class Speculator:
    """Decides, step by step, which sequences get a draft. Lives on the scheduler's thread."""

    def __init__(
        self,
        options: SchedulerOptions,
        costs: StepCosts,
        *,
        draft_model: DraftModel | None = None,
        clock: Callable[[], float],
    ) -> None:
        self._always = options.speculation == "always"
        self._longest = options.max_draft_tokens
        self._stretch = options.prefill_stretch
        self._costs = costs
        self._clock = clock
        self._unworthy = 0
        self.draft_model = draft_model
        self._model_acceptance = Acceptance(MODEL_PRIOR, PRIOR_TRIALS, MEMORY)
        self._model_token_s = 0.0
        self._read_token_s = 0.0
        self._modelled: set[Generation] = set()
        self.drafted = 0
        self.accepted = 0
        self.draft_problem = ""

    def propose(self, decoding: Sequence[Generation], room: int) -> dict[Generation, Sequence[int]]:
        """Drafts for some of the decoding sequences, at most ``room`` tokens together."""
        drafts: dict[Generation, Sequence[int]] = {}
        rows, tokens = len(decoding), float(len(decoding))
        for generation in decoding:
            lookup, most = generation.lookup, min(self._longest, room, _left(generation))
            if lookup is None or most < 1 or not (found := lookup.propose(generation.tokens, most)):
                continue
            rate = lookup.acceptance.rate
            length = most if self._always else self._length(rows, tokens, rate, most)
            if length == 0:
                continue
            drafts[generation] = found[:length]
            rows, room = rows + length, room - length
            tokens += expected_tokens(rate, length) - 1
        if self.draft_model is not None and not drafts:
            return self._ask_model(decoding, room)
        return drafts

    def note(self, generation: Generation, offered: int, accepted: int) -> None:
        """So many tokens of a sequence's draft were checked, so many were right."""
        self.drafted += offered
        self.accepted += accepted
        if generation in self._modelled:
            self._modelled.discard(generation)
            # What stands behind the first wrong one says nothing.
            self._model_acceptance.note(accepted, min(offered, accepted + 1))

    def set_threads(self, threads: int) -> None:
        """For the draft model: as many as the model has."""
        if self.draft_model is not None:
            self.draft_model.set_threads(threads)

    def close(self) -> None:
        """Free the draft model."""
        if self.draft_model is not None:
            self.draft_model.close()

    def _length(
        self, rows: int, tokens: float, rate: float, most: int, token_s: float = 0.0, each: int = 1
    ) -> int:
        """The best length of a draft for ``each`` of some sequences; 0 where none pays.

        ``token_s`` is what making one token of it takes.
        """
        without_s = self._costs.decode_s(rows)
        if without_s is None:
            return 0
        best, best_speed = 0, LEAST_GAIN * tokens / without_s
        for length in _lengths(most):
            step_s = self._costs.decode_s(rows + each * length) or without_s
            gained = each * (expected_tokens(rate, length) - 1)
            speed = (tokens + gained) / (step_s + length * token_s)
            if speed > best_speed:
                best, best_speed = length, speed
        if best == 0:
            self._count_unworthy(rows)
        return best

    def _count_unworthy(self, rows: int) -> None:
        self._unworthy += 1
        if self._unworthy >= RETRY_AFTER:
            self._unworthy = 0
            self._costs.forget_above(rows)

    def _ask_model(
        self, decoding: Sequence[Generation], room: int
    ) -> dict[Generation, Sequence[int]]:
        most = min([self._longest, room // len(decoding), *(_left(g) for g in decoding)])
        acceptance, count = self._model_acceptance, len(decoding)
        length = most
        if not self._always:
            length = self._length(count, count, acceptance.rate, most, self._model_token_s, count)
            if length == 0:
                acceptance.note(0, 0)
        if length < 1 or self.draft_model is None:
            return {}
        try:
            drafts = self._guesses(self.draft_model, decoding, length)
        except EngineError as error:
            # A broken draft model costs its drafts, and no answer.
            self.draft_problem = f"The draft model failed and was left out: {error.message}"
            self.draft_model.close()
            self.draft_model = None
            return {}
        self._modelled = set(drafts)
        return dict(drafts)

    def _guesses(
        self, model: DraftModel, decoding: Sequence[Generation], length: int
    ) -> dict[Generation, list[int]]:
        """For those whose text the draft model has read; it reads the others' a part further."""
        ready, behind = model.unread(decoding, length)
        drafts: dict[Generation, list[int]] = {}
        if ready:
            started_s = self._clock()
            drafts = model.propose(ready, length)
            self._model_token_s = (self._clock() - started_s) / length
        if behind:
            started_s = self._clock()
            tokens = model.read(behind, self._reading_tokens(len(decoding)))
            self._read_token_s = (self._clock() - started_s) / tokens
        return drafts

    def _reading_tokens(self, rows: int) -> int:
        """So many tokens may the draft model read beside a step: the others wait for it."""
        decode_s = self._costs.decode_s(rows)
        if not self._read_token_s or decode_s is None:
            return FIRST_READ_TOKENS
        most_s = READ_SHARE * (self._stretch - 1.0) * decode_s
        return max(LEAST_READ_TOKENS, int(most_s / self._read_token_s))


def check_draft(
    generation: Generation, row: BatchRow, logits: Logits, backend: Backend, now_s: float
) -> list[Chunk]:
    """Accept the model's own tokens as long as the draft's agree with them.

    ``logits`` are those after each token of the row, which is the last token of the answer and
    the draft. The answer grows by a chunk for each accepted token: one more than the draft was
    right, unless it ended before.
    """
    chunks: list[Chunk] = []
    generation.drafted += len(logits) - 1
    for n in range(len(logits)):
        generation.accepted += n > 0
        position = generation.next_position
        choice = choose_tokens([generation.sampler], logits[n : n + 1], [position])[0]
        chunks.append(generation.accept(choice, backend, now_s))
        if generation.ended or row.tokens[n + 1 : n + 2] != [choice.token]:
            break
    return chunks


def _lengths(most: int) -> Sequence[int]:
    """Those of at most so many tokens; who allows fewer than the first still may draft them."""
    allowed = [length for length in LENGTHS if length <= most]
    return allowed if allowed or most < 1 else [most]


def _left(generation: Generation) -> int:
    return generation.max_tokens - len(generation.tokens) - 1
