"""Where MLX's sequences keep their caches: alone, or as rows of a batch that steps together.

A prompt is computed in caches of its own; as soon as its sequence writes an answer beside others
it becomes a row of mlx-lm's batch caches, which pad on the left so that all rows end at one place.
A batch lasts from step to step, and is copied only when somebody joins or leaves it.

Rows that went on by different numbers of tokens (drafts) end with a *surplus*: tokens that do not
count. It is taken off before the batch goes on: what all rows have is trimmed, the rest is rolled
out of the way, as mlx-lm itself does with prompts that were padded on the right.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from overspill.engines.backend import SavedState
from overspill.errors import EngineError

Caches = list[Any]
"""One of mlx-lm's cache objects for each layer."""

MOST_DRIFT_TOKENS = 64
"""Padding that all rows of a batch may share before it is cut off."""


_KEEP_ALL = frozenset({"KVCache", "BatchKVCache", "QuantizedKVCache", "CacheList"})
"""mlx-lm's kinds that keep every token. Rolling ones and those in chunks can be cut until they
dropped their first token, which is too late to find out."""


def can_merge(caches: Iterable[Any]) -> bool:
    """Whether mlx-lm has batch caches of these kinds; those know no tokens that always stay."""
    return all(
        hasattr(cache, "merge")
        and not getattr(cache, "keep", 0)
        and can_merge(getattr(cache, "caches", ()))
        for cache in caches
    )


def can_cut(caches: Iterable[Any]) -> bool:
    """Whether tokens can be taken off at any time."""
    return all(
        type(cache).__name__ in _KEEP_ALL
        and cache.is_trimmable()
        and can_cut(getattr(cache, "caches", ()))
        for cache in caches
    )


def by_length(lengths: Mapping[int, int], *, token_bytes: int, pass_bytes: int) -> list[list[int]]:
    """Which sequences step together, by how many tokens they hold.

    In a batch the short ones are padded to the longest, and padding is read like anything else:
    where it would take more bytes than another pass over the weights, it is another pass.
    """
    parts: list[list[int]] = []
    longest = padding = 0
    for sequence in sorted(lengths, key=lengths.__getitem__, reverse=True):
        padding += (longest - lengths[sequence]) * token_bytes
        if not parts or padding > pass_bytes:
            parts.append([])
            longest, padding = lengths[sequence], 0
        parts[-1].append(sequence)
    return parts


class Batch:
    """Rows of batch caches; a row whose member has left is dead until ``sweep``."""

    def __init__(self, members: Sequence[int], parts: list[Caches]) -> None:
        self.members: list[int | None] = list(members)
        self.surplus = [0] * len(parts)
        self.caches: Caches = []
        for layer in range(len(parts[0])):
            # One layer at a time: what is copied exists twice for one layer only.
            cache = parts[0][layer].merge([part[layer] for part in parts])
            _compute([cache])
            self.caches.append(cache)
            for part in parts:
                part[layer] = None

    @property
    def living(self) -> list[int]:
        """Who is still in it."""
        return [member for member in self.members if member is not None]

    def copy_of(self, sequence: int) -> Caches:
        """A row as caches of its own; the batch stays as it is."""
        row = self.members.index(sequence)
        caches = []
        for cache in self.caches:
            mine = cache.extract(row)
            if self.surplus[row]:
                _cut([mine], self.surplus[row])
            _compute([mine])
            caches.append(mine)
        return caches

    def drop(self, sequence: int) -> None:
        """Its row is dead from now on."""
        self.members[self.members.index(sequence)] = None

    def sweep(self) -> None:
        """Let the dead rows go; at least one has to live."""
        rows = [row for row, member in enumerate(self.members) if member is not None]
        if len(rows) < len(self.members):
            self._keep(rows)

    def settle(self) -> None:
        """Take the surplus off, so that every row ends with its last token."""
        least = min(self.surplus)
        rest = [surplus - least for surplus in self.surplus]
        if least:
            _cut(self.caches, least)
        if any(rest):
            for cache in self.caches:
                cache.prepare(right_padding=rest)
                cache.finalize()
                _compute([cache])
        self.surplus = [0] * len(rest)

    def squeeze(self, padding: int) -> None:
        """Cut off what all rows are padded with, once it has become much."""
        if padding >= MOST_DRIFT_TOKENS:
            self._keep(list(range(len(self.members))))

    def extend(self, other: Batch) -> None:
        """Take in the rows of another batch, which is used up."""
        for mine, theirs in zip(self.caches, other.caches, strict=True):
            mine.extend(theirs)
            _compute([mine])
        self.members += other.members
        self.surplus += other.surplus

    def _keep(self, rows: list[int]) -> None:
        kept = mx.array(rows)
        for cache in self.caches:
            cache.filter(kept)
            _compute([cache])
        self.members = [self.members[row] for row in rows]
        self.surplus = [self.surplus[row] for row in rows]


class SequenceCaches:
    """The caches of all sequences, by number; whose operation failed is to be forgotten."""

    def __init__(self, new_caches: Callable[[], Caches]) -> None:
        self._new_caches = new_caches
        self._alone: dict[int, Caches] = {}
        self._batches: list[Batch] = []
        self._lengths: dict[int, int] = {}

    def held(self, sequence: int) -> int:
        """How many tokens a sequence has."""
        return self._lengths.get(sequence, 0)

    def alone(self, sequence: int) -> Caches:
        """A sequence's caches, by themselves; empty ones where it has none."""
        batch = self._batch_of(sequence)
        if batch is not None:
            self._alone[sequence] = batch.copy_of(sequence)
            batch.drop(sequence)
        elif sequence not in self._alone:
            self._alone[sequence] = self._new_caches()
        return self._alone[sequence]

    def together(self, sequences: Sequence[int]) -> Batch:
        """A batch with exactly these sequences as rows, in whatever order; two at least."""
        batch = self._mostly(sequences)
        if batch is None:
            batch = self._merged(sequences)
        else:
            self._change(batch, sequences)
        longest = max(self.held(sequence) for sequence in sequences)
        batch.squeeze(batch.caches[0].size() - longest)
        return batch

    def appended(self, tokens: Mapping[int, int], batch: Batch | None = None) -> None:
        """Sequences went on by so many tokens, and each row of ``batch`` by the most of them."""
        most = max(tokens.values())
        for sequence, count in tokens.items():
            self._lengths[sequence] = self.held(sequence) + count
            if batch is not None:
                batch.surplus[batch.members.index(sequence)] += most - count

    def sweep(self) -> None:
        """Let go of the rows that nobody owns any more."""
        self._batches = [batch for batch in self._batches if batch.living]
        for batch in self._batches:
            batch.sweep()

    def forget(self, sequence: int, position: int) -> None:
        """Drop what follows ``position``; raises ``EngineError`` where the kind can't be cut."""
        batch = self._batch_of(sequence)
        if position == 0:
            self._alone.pop(sequence, None)
            self._lengths.pop(sequence, None)
            if batch is not None:
                batch.drop(sequence)
            return
        surplus = self.held(sequence) - position
        if surplus <= 0:
            return
        if batch is None:
            _cut(self._alone[sequence], surplus)
        else:
            if not can_cut(batch.caches):
                raise _uncut(surplus)
            batch.surplus[batch.members.index(sequence)] += surplus
        self._lengths[sequence] = position

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Copy all of it, then cut."""
        self.load(target, (self._copy(source), self.held(source)))
        self.forget(target, tokens)

    def save(self, sequence: int) -> SavedState:
        """A copy of the caches, and how many tokens they hold."""
        caches = self._copy(sequence)
        size = sum(cache.nbytes for cache in caches)
        return SavedState((caches, self.held(sequence)), size)

    def load(self, sequence: int, data: object) -> None:
        """A copy again: the saved one may be loaded more than once."""
        if not isinstance(data, tuple):
            raise EngineError("MLX: that is no state of its own.")
        self.forget(sequence, 0)
        caches, self._lengths[sequence] = data
        self._alone[sequence] = copy.deepcopy(caches)

    def clear(self) -> None:
        """Drop everything."""
        self._alone.clear()
        self._batches.clear()
        self._lengths.clear()

    def _copy(self, sequence: int) -> Caches:
        batch = self._batch_of(sequence)
        # MLX copies when one of both is written to.
        return copy.deepcopy(self._alone[sequence]) if batch is None else batch.copy_of(sequence)

    def _batch_of(self, sequence: int) -> Batch | None:
        return next((batch for batch in self._batches if sequence in batch.members), None)

    def _mostly(self, sequences: Sequence[int]) -> Batch | None:
        """The batch that most of these are in, if that is most of the batch too."""
        best, shared = None, 0
        for batch in self._batches:
            common = len(set(batch.living) & set(sequences))
            if common > shared and 2 * common >= len(batch.living):
                best, shared = batch, common
        return best

    def _change(self, batch: Batch, sequences: Sequence[int]) -> None:
        for outsider in set(batch.living) - set(sequences):
            self.alone(outsider)
        batch.sweep()
        batch.settle()
        newcomers = [sequence for sequence in sequences if sequence not in batch.members]
        if newcomers:
            batch.extend(self._rows(newcomers))

    def _merged(self, sequences: Sequence[int]) -> Batch:
        batch = self._rows(sequences)
        self._batches.append(batch)
        return batch

    def _rows(self, sequences: Sequence[int]) -> Batch:
        parts = [self.alone(sequence) for sequence in sequences]
        for sequence in sequences:
            del self._alone[sequence]
        self.sweep()
        return Batch(sequences, parts)


def _cut(caches: Caches, tokens: int) -> None:
    for cache in caches:
        if not cache.is_trimmable() or cache.trim(tokens) != tokens:
            raise _uncut(tokens)


def _uncut(tokens: int) -> EngineError:
    return EngineError(f"MLX cannot take {tokens} tokens off this model's cache.")


def _compute(caches: Caches) -> None:
    mx.eval([cache.state for cache in caches])
