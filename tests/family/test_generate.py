"""The generator: the same data each time, right answers, and nothing held back in training."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from examples.family.generate import (
    EVAL_PER_CELL,
    EVAL_SEED,
    as_prompt,
    cells,
    conversation,
    demo_prompts,
    draw,
    held_back,
    stream,
)
from examples.family.skills.common import Record, is_reserved, normalise
from examples.family.skills.facts import FACTS
from examples.family.template import render, render_pieces
from overspill.evals.grade import grade

REPOSITORY = Path(__file__).resolve().parents[2]
EVAL_FILE = REPOSITORY / "examples" / "family" / "eval_prompts.jsonl"
DEMO_FILE = REPOSITORY / "sdk" / "overspill" / "cli" / "demo_prompts.json"
UNIFORM = dict.fromkeys(cells(), 1.0)


def _wrong(record: Record) -> list[str]:
    """Answers that must not pass."""
    spoilt = ["", "I do not know."]
    if record.kind in ("number", "exact") and record.expected[-1].isdigit():
        spoilt.append(record.expected[:-1] + str((int(record.expected[-1]) + 1) % 10))
    if record.kind == "json":
        spoilt.append(record.answer.replace(":", ': "x", "y":', 1))
    return spoilt


@pytest.mark.parametrize(("skill", "level"), cells())
def test_own_answers_pass_and_wrong_ones_do_not(skill: str, level: str) -> None:
    rng = Random(11)
    for _ in range(60):
        record = draw(rng, skill, level, reserved=False)
        assert (record.skill, record.level) == (skill, level)
        assert grade(record.kind, record.expected, record.answer), record
        for answer in _wrong(record):
            assert not grade(record.kind, record.expected, answer), (record, answer)


def test_stream_is_the_same_each_time_and_differs_by_block() -> None:
    first = list(stream(1, 0, 200, UNIFORM))
    assert first == list(stream(1, 0, 200, UNIFORM))
    assert first != list(stream(1, 1, 200, UNIFORM))
    assert first != list(stream(2, 0, 200, UNIFORM))


@pytest.mark.parametrize(("skill", "level"), cells())
def test_training_draws_no_reserved_record(skill: str, level: str) -> None:
    rng = Random(12)
    assert not any(is_reserved(draw(rng, skill, level, reserved=False)) for _ in range(100))


def _asked(messages: list[dict[str, Any]]) -> tuple[str, ...]:
    """What a conversation asks: the user's and the tools' turns."""
    return tuple(normalise(m["content"]) for m in messages if m["role"] in ("user", "tool"))


def test_held_back_prompts_do_not_occur_in_the_stream() -> None:
    held = {_asked(p["messages"]) for p in _stored() + json.loads(DEMO_FILE.read_text())}
    for messages, _ in stream(1, 5, 4000, UNIFORM):
        turns = _asked(messages)
        assert turns not in held
        if not any(m["role"] == "tool" for m in messages):  # nor as one turn of a longer chat
            assert not any((turn,) in held for turn in turns), turns


def test_a_held_back_fact_is_learnt_in_other_words() -> None:
    """Facts are held back by phrasing: each one keeps a way of asking that is trained on."""
    for groups in FACTS.values():
        for fact in (f for group in groups for f in group):
            records = (
                Record("facts", "easy", [], fact.answer, "exact", fact.answer, key=ask.lower())
                for ask in fact.asks
            )
            assert not all(is_reserved(r) for r in records), fact


def _stored() -> list[dict[str, Any]]:
    return [json.loads(line) for line in EVAL_FILE.read_text(encoding="utf-8").splitlines()]


def test_stored_prompts_are_what_the_generator_makes() -> None:
    records = held_back(EVAL_SEED, EVAL_PER_CELL)
    assert all(is_reserved(r) for r in records)
    assert _stored() == [json.loads(json.dumps(as_prompt(r))) for r in records]
    counts = dict.fromkeys(cells(), 0)
    for record in records:
        counts[record.skill, record.level] += 1
    assert min(counts.values()) >= EVAL_PER_CELL


def test_demo_prompts_are_what_the_generator_makes() -> None:
    stored = json.loads(DEMO_FILE.read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(demo_prompts()))
    assert {p["level"] for p in stored} == {"easy", "medium", "hard"}
    assert any("tools" in p for p in stored)
    assert any(len(p["messages"]) > 1 for p in stored)


@pytest.mark.parametrize(("skill", "level"), cells())
def test_training_text_equals_the_chat_template(skill: str, level: str) -> None:
    rng = Random(13)
    for _ in range(20):
        record = draw(rng, skill, level, reserved=False)
        messages = [{"role": "system", "content": "Be brief."}, *conversation(record)]
        for turns in (messages, messages[1:]):
            pieces = render_pieces(turns, record.tools)
            assert "".join(text for text, _ in pieces) == render(
                turns, record.tools, add_generation_prompt=False
            )
