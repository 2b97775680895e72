"""Make the training stream and the held-back prompts, all from seeds.

``python -m examples.family.generate`` writes ``eval_prompts.jsonl`` and the demo's prompts.
Training draws from :func:`stream`, which skips every reserved record (see ``is_reserved``);
the held-back sets hold reserved records only, so that the two can never meet.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from examples.family.skills import (
    arithmetic,
    facts,
    language,
    measures,
    ordering,
    toolcalls,
    turns,
    writing,
)
from examples.family.skills.common import LEVELS, Message, Record, assistant, is_reserved, normalise

Maker = Callable[[Random, str], Record]
SKILLS: dict[str, Maker] = {
    "arithmetic": arithmetic.make,
    "sorting": ordering.make_sorting,
    "counting": ordering.make_counting,
    "units": measures.make_units,
    "dates": measures.make_dates,
    "extraction": language.make_extraction,
    "classification": language.make_classification,
    "summary": writing.make_summary,
    "story": writing.make_story,
    "facts": facts.make,
    "followup": turns.make,
    "tools": toolcalls.make,
    "chat": writing.make_chat,
}
# Trained on, but no skill that is evaluated.
PRACTICE: dict[str, Maker] = {"repeat": writing.make_repeat}
HERE = Path(__file__).resolve().parent
EVAL_SEED, DEMO_SEED = 7001, 7002
EVAL_PER_CELL = 20
_SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Be brief.",
    "Answer briefly.",
    "You are an assistant on a phone.",
)


def cells() -> list[tuple[str, str]]:
    """Every (skill, level); small talk has the easy level only."""
    return [(s, level) for s in SKILLS for level in LEVELS if s != "chat" or level == "easy"]


@cache
def _reserved_facts() -> frozenset[str]:
    """Every held-back way to ask for a fact, without its punctuation."""
    asks = (ask for groups in facts.FACTS.values() for g in groups for f in g for ask in f.asks)
    probes = ((ask, Record("facts", "", [], "", "exact", "", key=ask.lower())) for ask in asks)
    return frozenset(normalise(ask) for ask, probe in probes if is_reserved(probe))


def gives_away(record: Record) -> bool:
    """Whether a turn of ``record``, by itself, is a held-back fact or tool request."""
    turns = [m["content"] for m in record.messages if m["role"] == "user"]
    if any(normalise(text) in _reserved_facts() for text in [*turns, record.key]):
        return True
    if record.skill != "tools":
        return False
    return is_reserved(Record("tools", "", [{"role": "user", "content": turns[0]}], "", "", ""))


def draw(rng: Random, skill: str, level: str, reserved: bool) -> Record:
    """Draw one record of a cell from the held-back part or from the rest."""
    while True:
        record = (SKILLS.get(skill) or PRACTICE[skill])(rng, level)
        if is_reserved(record) != reserved:
            continue
        if reserved or not gives_away(record):
            return record


def conversation(record: Record) -> list[Message]:
    """The record's messages with the model answer as the last turn."""
    return [*record.messages, assistant(record.answer)]


Weights = dict[tuple[str, str], float]
Sample = tuple[list[Message], list[dict[str, Any]]]


def sample(rng: Random, weights: Weights) -> Sample:
    """One training conversation: mostly one record, at times a chat over several of them."""
    keys, values = list(weights), list(weights.values())

    def one() -> Record:
        skill, level = rng.choices(keys, weights=values)[0]
        return draw(rng, skill, level, reserved=False)

    record = one()
    messages = conversation(record)
    if not record.tools and rng.random() < 0.12:
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            more = one()
            if not more.tools:
                messages += conversation(more)
    if rng.random() < 0.1:
        messages.insert(0, {"role": "system", "content": rng.choice(_SYSTEM)})
    return messages, record.tools


def stream(seed: int, block: int, count: int, weights: Weights) -> Iterator[Sample]:
    """Yield the ``count`` conversations of block number ``block``; equal seeds, equal blocks."""
    rng = Random(f"train-{seed}-{block}")
    for _ in range(count):
        yield sample(rng, weights)


def held_back(seed: int, per_cell: int) -> list[Record]:
    """Distinct held-back records of every cell, in a fixed order."""
    records = []
    for skill, level in cells():
        rng = Random(f"held-{seed}-{skill}-{level}")
        seen: set[str] = set()
        tries = 0
        while len(seen) < per_cell and tries < 200 * per_cell:
            tries += 1
            record = draw(rng, skill, level, reserved=True)
            text = json.dumps(record.messages)
            if text not in seen:
                seen.add(text)
                records.append(record)
    return records


def as_prompt(record: Record) -> dict[str, Any]:
    """The record as it is stored in the prompt files."""
    prompt: dict[str, Any] = {
        "skill": record.skill,
        "level": record.level,
        "messages": record.messages,
    }
    if record.tools:
        prompt["tools"] = record.tools
    prompt["grade"] = record.kind
    prompt["expected"] = record.expected
    prompt["max_tokens"] = record.max_tokens
    return prompt


def demo_prompts() -> list[dict[str, Any]]:
    """Two prompts of every skill: levels in turn, so that all are met; drawn by seed alone."""
    records = held_back(DEMO_SEED, 1)
    by_cell = {(r.skill, r.level): r for r in records}
    chosen = []
    for index, skill in enumerate(s for s in SKILLS if s != "chat"):
        levels = (LEVELS[index % 3], LEVELS[(index + 1) % 3])
        chosen += [as_prompt(by_cell[skill, level]) for level in levels]
    chosen.append(as_prompt(by_cell["chat", "easy"]))
    return chosen


def main() -> None:
    """Write the held-back prompt files."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--eval", type=Path, default=HERE / "eval_prompts.jsonl")
    parser.add_argument(
        "--demo",
        type=Path,
        default=HERE.parents[1] / "sdk" / "overspill" / "cli" / "demo_prompts.json",
    )
    args = parser.parse_args()
    lines = [
        json.dumps(as_prompt(r), ensure_ascii=False) for r in held_back(EVAL_SEED, EVAL_PER_CELL)
    ]
    args.eval.write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = json.dumps(demo_prompts(), ensure_ascii=False, indent=1)
    args.demo.write_text(text + "\n", encoding="utf-8")
    print(f"{len(lines)} evaluation prompts, {len(demo_prompts())} for the demo")


if __name__ == "__main__":
    main()
