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
from overspill.routing.lexis import MAX_CHARS, both_ends, lexis_of

spaced = st.text(string.ascii_letters + string.digits + " ._,;-'_", max_size=200).map(
    lambda text: " ".join(text.split())
)


# Letters without case, with a case of two characters, digits and marks of other scripts, numbers
# that are none, what has no width, an accent by itself.
_ODD = "éÉßİıſ漢字жЖ²½٤５×—…¿\u200b\u0301\U0001f600ǅ"
anything = st.text(
    st.sampled_from(string.ascii_letters[:8] + "XYZ" + string.digits + " .,?;'_-\n\t\u00a0" + _ODD),
    max_size=60,
)


@given(anything)
def test_tables_and_replacements_find_what_expressions_find(text: str) -> None:
    lexis = lexis_of(text)
    text = " ".join(text.split())
    lower = text.lower()
    zeroed = re.sub(r"\d", "0", lower)
    words = re.findall(r"[^\W\d_]+", text)
    assert (lexis.text, lexis.lower) == (text, lower)
    assert lexis.zeroed == (zeroed if "0" in zeroed else "")
    assert list(lexis.words) == re.findall(r"[^\W\d_]+", lower)
    assert lexis.capitals == sum(word[0].isupper() for word in words)
    runs = {re.sub(r"\d", "0", run) for run in lexis.runs}
    assert {run for run in runs if run.strip("0")} == {
        run for run in re.findall(r"\w+", zeroed) if run.strip("0")
    }
    assert list(lexis.numbers) == re.findall(r"0+(?:[.,]0+)*", zeroed)
    assert lexis.marks.decode() == "".join(re.findall(r"[!-/:-@\[-^`{-~]", text))
    pieces = re.findall(r"[^\W\d_]+|0+|[^\w\s]", zeroed)
    assert [piece.decode() for piece in lexis.pieces] == [
        re.sub("0{7,}", "000000", p) for p in pieces
    ]


@given(st.text("a \n", max_size=40), st.integers(1, 400), st.text("b \t", max_size=40))
def test_both_ends_are_those_of_the_text_in_single_spaces(head: str, times: int, tail: str) -> None:
    text = head * times + "middle" + tail * times
    spaced = " ".join(text.split())
    half = MAX_CHARS // 2
    cut = f"{spaced[:half].strip()} {spaced[-half:].strip()}"
    assert both_ends(text) == (spaced if len(spaced) <= MAX_CHARS else cut)


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
