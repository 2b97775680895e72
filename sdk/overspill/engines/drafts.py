"""Where drafts come from: guesses at the next tokens, which the model then checks.

A draft may be anything: a wrong one costs time and never changes an answer. Prompt lookup is
Saxena's (2023): what followed the last tokens where they stood before. A client's draft is looked
up in the same way, from its first token on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from overspill.engines.backend import BatchRow
from overspill.errors import ModelInvalid

if TYPE_CHECKING:
    from overspill.engines.backend import Backend, Logits
    from overspill.engines.generation import Generation

    Rows: TypeAlias = dict[Generation, BatchRow]

NGRAM_TOKENS = 3
"""Fewer repeat by chance."""
LOOKUP_PRIOR, DRAFT_PRIOR = 0.5, 0.9
"""How often a lookup is right before it was followed; a client who sends a draft is believed."""
NEARLY_READ_TOKENS = 32
"""So much of a text, at most, a draft model may have to read before it guesses: what steps without
its guesses leave unread."""
CHECKED_TOKENS = 512
"""So many of a vocabulary's tokens are compared to see whether two are the same."""


@dataclass(slots=True)
class Acceptance:
    """How often a drafted token is right: a mean that forgets, drawn towards a prior."""

    prior: float
    prior_trials: float
    memory: float
    right: float = 0.0
    trials: float = 0.0

    @property
    def rate(self) -> float:
        """The estimate, between 0 and 1."""
        return (self.right + self.prior_trials * self.prior) / (self.trials + self.prior_trials)

    def note(self, right: int, trials: int) -> None:
        """Of so many tokens, so many were right; what was noted before counts for less."""
        self.right = self.right * self.memory + right
        self.trials = self.trials * self.memory + trials


class PromptLookup:
    """Looks the answer's last tokens up in the client's draft, the prompt and the answer.

    The text is indexed once, and then by as much as the answer grew since the last question.
    ``acceptance`` is measured by following a guess, whether or not it was checked as a draft: to
    find out that a text copies nothing costs nothing.
    """

    def __init__(self, prompt: Sequence[int], draft: Sequence[int] = ()) -> None:
        self._text = [*draft, *prompt]
        self._before = len(self._text)
        self._places: dict[tuple[int, ...], int] = {}
        self._indexed = NGRAM_TOKENS
        # Where the answer seems to be copied from; a draft is followed from its start.
        self._cursor: int | None = 0 if draft else None
        self._index()
        self.acceptance = Acceptance(DRAFT_PRIOR if draft else LOOKUP_PRIOR, 2.0, memory=0.95)

    def propose(self, answer: Sequence[int], limit: int) -> Sequence[int]:
        """At most ``limit`` tokens that may follow; the answer is what it was, and longer."""
        self._follow(answer[len(self._text) - self._before :])
        self._index()
        text, cursor = self._text, self._cursor
        if cursor is None or cursor >= len(text):
            cursor = self._cursor = self._places.get(tuple(text[-NGRAM_TOKENS:]))
            if cursor is None:
                return ()
        found = text[cursor : cursor + limit]
        # What ends here and began there goes on in turns, if it goes on.
        period = len(text) - cursor
        while len(found) < limit:
            found.append(found[-period])
        return found

    def _follow(self, news: Sequence[int]) -> None:
        for token in news:
            cursor = self._cursor
            if cursor is not None:
                going_on = cursor < len(self._text) and self._text[cursor] == token
                self._cursor = cursor + 1 if going_on else None
                self.acceptance.note(int(going_on), 1)
            self._text.append(token)

    def _index(self) -> None:
        """Index all n-grams but the last: that is the one that is looked up."""
        text, start = self._text, self._indexed
        stop = len(text)
        if stop - start == 1:
            self._places[tuple(text[start - NGRAM_TOKENS : start])] = start
            self._indexed = stop
        elif start < stop:
            columns = (text[start - n : stop - n] for n in range(NGRAM_TOKENS, 0, -1))
            grams = zip(*columns, strict=True)
            self._places.update(zip(grams, range(start, stop), strict=True))
            self._indexed = stop


def tokenizer_fingerprint(backend: Backend) -> str:
    """A digest of the vocabulary's size and of tokens from all over it (hex): two models whose
    tokens are the same have the same."""
    size = backend.vocabulary.size
    digest = hashlib.sha256(f"overspill/v1/tokenizer {size}".encode())
    for token in range(0, size, max(1, size // CHECKED_TOKENS)):
        written = backend.token_bytes(token)
        digest.update(len(written).to_bytes(4, "big") + written)
    return digest.hexdigest()


class DraftModel:
    """A smaller model of the same tokenizer, with a cache of its own beside each sequence.

    Guesses by its largest logits. Lives on the scheduler's thread, as the model does.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        # By slot: whose it is, and the tokens that its cache holds.
        self._held: dict[int, tuple[Generation, list[int]]] = {}

    @property
    def memory_bytes(self) -> int:
        """What it was estimated to take, its cache full."""
        return self._backend.card.memory_bytes

    def check_same_tokenizer(self, model: Backend) -> None:
        """Raise :class:`ModelInvalid` where its tokens are not the model's."""
        if tokenizer_fingerprint(self._backend) != tokenizer_fingerprint(model):
            raise ModelInvalid(
                f"The draft model {self._backend.card.name} has another tokenizer than the model.",
                mend="Use a draft model of the same family, or none.",
            )

    def unread(self, wanting: Sequence[Generation], limit: int) -> tuple[Rows, Rows]:
        """What it has not read of each text that leaves room for ``limit`` more tokens: of those
        that it can guess at once, and of those that it has to read first."""
        fit = self._backend.context_per_sequence - limit
        ready: Rows = {}
        behind: Rows = {}
        for generation in wanting:
            if generation.pictures is None and len(generation.prompt + generation.tokens) <= fit:
                row = self._row(generation)
                is_near = len(row.tokens) <= NEARLY_READ_TOKENS
                (ready if is_near else behind)[generation] = row
        return ready, behind

    def read(self, behind: Rows, most: int) -> int:
        """Read on, first come first served, by at most ``most`` tokens; returns by how many."""
        rows: list[BatchRow] = []
        room = min(most, self._backend.batch_tokens)
        for row in behind.values():
            # All of it but the last token is read without asking for logits.
            tokens = row.tokens[: min(room, len(row.tokens) - 1)]
            if tokens:
                rows.append(BatchRow(row.sequence, row.position, tokens, wants_logits=False))
                room -= len(tokens)
        self._run(rows)
        return sum(len(row.tokens) for row in rows)

    def propose(self, ready: Rows, limit: int) -> dict[Generation, list[int]]:
        """``limit`` tokens for each."""
        drafts: dict[Generation, list[int]] = {generation: [] for generation in ready}
        rows = list(ready.values())
        for _ in range(limit):
            guesses = self._run(rows).argmax(axis=1).tolist()
            rows = []
            for generation, guess in zip(ready, guesses, strict=True):
                drafts[generation].append(guess)
                held = self._held[generation.slot][1]
                rows.append(BatchRow(generation.slot, len(held), [guess], wants_logits=True))
        return drafts

    def close(self) -> None:
        """Free the model."""
        self._backend.close()

    def set_threads(self, threads: int) -> None:
        """As many as the model."""
        self._backend.set_threads(threads)

    def _run(self, rows: Sequence[BatchRow]) -> Logits:
        logits = self._backend.run(rows)
        for row in rows:
            self._held[row.sequence][1].extend(row.tokens)
        return logits

    def _row(self, generation: Generation) -> BatchRow:
        """What it hasn't read of a sequence, its wrong guesses forgotten."""
        slot = generation.slot
        owner, held = self._held.get(slot, (None, []))
        if owner is not generation:
            held = []
            self._backend.forget(slot, 0)
            self._held[slot] = generation, held
        text = generation.prompt + generation.tokens
        same = _agreeing(held, text)
        if same < len(held):
            self._backend.forget(slot, same)
            del held[same:]
        return BatchRow(slot, same, text[same:], wants_logits=True)


def _agreeing(held: Sequence[int], text: Sequence[int]) -> int:
    """How many tokens are the same; at least one of the text is left to be read."""
    end = min(len(held), len(text) - 1)
    # Only the last guesses can be wrong: look from behind for where they were not.
    tail = max(0, end - 64)
    if list(held[:tail]) != list(text[:tail]):
        tail = 0
    while tail < end and held[tail] == text[tail]:
        tail += 1
    return tail
