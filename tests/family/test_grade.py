"""Grading: what counts as right, and what does not."""

from __future__ import annotations

import json

import pytest

from overspill.evals.grade import KINDS, grade


@pytest.mark.parametrize(
    ("kind", "expected", "answer", "right"),
    [
        ("exact", "Paris", "paris.", True),
        ("exact", "Paris", "Paris, France", False),
        ("exact", "1, 2, 3", "1: 1\n2: 2,3\nAnswer: 1, 2, 3", True),
        ("exact", "1, 2, 3", "Answer: 1, 3, 2", False),
        ("number", "85", "7+8+0=15\nAnswer: 85", True),
        ("number", "85", "Answer: 85 apples, 12 boxes", True),
        ("number", "85", "It makes 85.", True),
        ("number", "85", "85 or maybe 86", False),
        ("number", "1250", "Answer: 1,250", True),
        ("number", "85", "", False),
        ("label", "positive", "Positive.", True),
        ("label", "positive", "The label is positive.", True),
        ("label", "positive", "not positive", False),
        ("label", "positive", "positive or negative", False),
        ("json", '{"a": 1}', 'Here: {"a": 1}', True),
        ("json", '{"a": 1}', '{"a": "1"}', False),
        ("json", '{"a": 1}', '{"a": true}', False),
        ("json", '[{"a": 1}]', '[{"a": 1}, {"a": 2}]', False),
        ("json", '{"a": 1}', "no JSON here", False),
    ],
)
def test_grades(kind: str, expected: str, answer: str, right: bool) -> None:
    assert grade(kind, expected, answer) is right


def test_tool_call_in_either_form() -> None:
    expected = json.dumps({"name": "f", "arguments": {"x": 1}})
    assert grade(
        "tool_call", expected, '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    )
    assert grade("tool_call", expected, '{"name": "f", "arguments": "{\\"x\\": 1}"}')
    assert not grade(
        "tool_call", expected, '<tool_call>{"name": "g", "arguments": {"x": 1}}</tool_call>'
    )
    assert not grade("tool_call", expected, '{"name": "f", "arguments": {"x": "1"}}')
    assert not grade("tool_call", expected, '{"name": "f", "arguments": "oops"}')
    assert not grade("tool_call", expected, "f(1)")


def test_free_text_needs_every_word_and_the_length() -> None:
    expected = json.dumps({"all": ["fox", "lamp"], "min_sentences": 2, "max_words": 8})
    assert grade("contains_all", expected, "A fox ran. It found a lamp.")
    assert not grade("contains_all", expected, "A fox ran and found a lamp.")
    assert not grade("contains_all", expected, "A foxy one. It found a lamp.")
    assert not grade("contains_all", expected, "A fox ran off. It then found a very big lamp.")


def test_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown grade kind"):
        grade("taste", "x", "x")
    assert "exact" in KINDS
