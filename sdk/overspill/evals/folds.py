"""Folds for cross-fitting: no prompt is judged by a fit that saw it, its near-duplicate, or, where
there are groups, its group.

Near-duplicates are found by MinHash over shingles of three words (Broder 1997), in bands, and
confirmed by the Jaccard similarity of the shingles themselves. A benchmark's common preamble does
not join its prompts: shingles that stand in more than a fiftieth of all prompts don't count.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.intp]
_WORD = re.compile(r"\w+")
_SHINGLE_WORDS = 3
_BANDS, _ROWS = 16, 4
_HASHES = _BANDS * _ROWS
_SIMILAR = 0.7
_COMMON = 0.02
_MIN_COMMON = 20
_PRIME = np.uint64(2**61 - 1)


class _Clusters:
    """Disjoint sets over 0..n-1."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, item: int) -> int:
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        self._parent[self.find(other)] = self.find(one)


def near_duplicates(prompts: Sequence[str], seed: int = 0) -> Ints:
    """The number of each prompt's cluster, shape (n,); a prompt unlike all others has its own."""
    shingles = [_shingles(prompt) for prompt in prompts]
    seen_in = Counter(s for found in shingles for s in found)
    limit = max(_MIN_COMMON, _COMMON * len(prompts))
    telling = [frozenset(s for s in f if seen_in[s] <= limit) or f for f in shingles]
    clusters = _Clusters(len(prompts))
    for bucket in _buckets(telling, seed):
        first = bucket[0]
        for other in bucket[1:]:
            known = clusters.find(first) == clusters.find(other)
            if not known and _jaccard(telling[first], telling[other]) >= _SIMILAR:
                clusters.join(first, other)
    return np.array([clusters.find(i) for i in range(len(prompts))], dtype=np.intp)


def assign_folds(keys: Sequence[Hashable], count: int, seed: int) -> Ints:
    """A fold for each row, shape (n,): rows with equal keys share one, and sizes are even.

    Fewer different keys than ``count`` make as many folds as there are keys.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        members[key].append(row)
    blocks = list(members.values())
    np.random.default_rng(seed).shuffle(blocks)
    blocks.sort(key=len, reverse=True)
    sizes = [0] * min(count, len(blocks))
    folds = np.zeros(len(keys), dtype=np.intp)
    for block in blocks:
        fold = sizes.index(min(sizes))
        folds[block] = fold
        sizes[fold] += len(block)
    return folds


def training_rows(folds: Ints, clusters: Ints, fold: int) -> Ints:
    """Rows outside of a fold, less those with a near-duplicate inside it."""
    inside = np.unique(clusters[folds == fold])
    return np.flatnonzero((folds != fold) & ~np.isin(clusters, inside))


def _shingles(prompt: str) -> frozenset[int]:
    words = _WORD.findall(prompt.lower())
    spans = range(max(1, len(words) - _SHINGLE_WORDS + 1))
    return frozenset(zlib.crc32(" ".join(words[i : i + _SHINGLE_WORDS]).encode()) for i in spans)


def _buckets(shingles: Sequence[frozenset[int]], seed: int) -> Iterable[list[int]]:
    """Rows that agree in all of a band's MinHashes."""
    rng = np.random.default_rng(seed)
    slopes = rng.integers(1, 2**28, _HASHES, dtype=np.uint64)
    offsets = rng.integers(0, 2**60, _HASHES, dtype=np.uint64)
    found: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for row, one in enumerate(shingles):
        values = np.fromiter(one, dtype=np.uint64)
        # A slope under 2**28 times a CRC under 2**32 plus an offset stays under 2**64.
        lowest = ((values[:, None] * slopes + offsets) % _PRIME).min(axis=0)
        for band in range(_BANDS):
            found[band, lowest[band * _ROWS : (band + 1) * _ROWS].tobytes()].append(row)
    return (rows for rows in found.values() if len(rows) > 1)


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other)
