"""A text's words are the same whichever way they are found, and cues what their expressions say."""

from __future__ import annotations

import re
import string
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.routing.complexity import shipped_scorer
from overspill.routing.cues import TASKS
from overspill.routing.features import hash_ngrams
from overspill.routing.lexis import MAX_CHARS, _of_any, _of_ascii, lexis_of

spaced = st.text(string.ascii_letters + string.digits + " ._,;-'_", max_size=200).map(
    lambda text: " ".join(text.split())
)


@given(spaced)
def test_tables_and_expressions_find_the_same_in_ascii(text: str) -> None:
    assert _of_ascii(text) == _of_any(text)


@given(spaced)
def test_hashes_are_those_of_words_and_of_pairs_put_together(text: str) -> None:
    found = re.findall(r"[^\W\d_]+|\d+|[^\w\s]", text.lower())
    tokens = ["0" * min(len(t), 6) if t[0].isdigit() else t for t in found]
    pairs = [f"{a} {b}" for a, b in pairwise(tokens)]
    buckets = shipped_scorer().buckets
    assert set(hash_ngrams(text, buckets)) == {
        zlib.crc32(one.encode()) % buckets for one in (*tokens, *pairs)
    }


@given(spaced)
def test_a_word_is_a_cue_only_as_a_whole(text: str) -> None:
    lexis = lexis_of(text)
    for _, cue in TASKS:
        if any(re.search(rf"\b{word}\b", text.lower()) for word in cue.words):
            assert cue.matches(lexis, lexis.runs)


@pytest.mark.parametrize("letter", ["a", "é", "中"])
def test_of_a_long_text_both_ends_are_looked_at(letter: str) -> None:
    lexis = lexis_of(f"first {letter * 10_000} last")
    assert (lexis.words[0], lexis.words[-1]) == ("first", "last")
    assert len(lexis.text) <= MAX_CHARS + 1
