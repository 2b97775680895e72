"""Two logs of the same prompts, laid together: what `eval routing` and `calibrate` read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overspill.errors import UsageError
from overspill.evals.prompt_set import Prompt, load_prompts
from overspill.evals.run_log import read_log


@dataclass(frozen=True, slots=True)
class Joined:
    """``rows`` in the prompts' order: the prompt, both models' correctness, the small one's
    confidence. ``summary`` is what a person wants to know of them."""

    rows: tuple[Mapping[str, Any], ...]
    summary: Mapping[str, Any]


def join_logs(prompts: Path, small: Path, large: Path) -> Joined:
    """Every prompt that both models' logs grade.

    Raises ``UsageError`` where a log is of other prompts or holds two models, and where nothing is
    graded in both.
    """
    asked = load_prompts(prompts)
    known = {prompt.id: prompt for prompt in asked}
    found = [_graded(path, known) for path in (small, large)]
    shared = [prompt for prompt in asked if all(prompt.id in log for log in found)]
    if not shared:
        raise UsageError(f"No prompt is graded in both {small} and {large}.")
    rows = tuple(_row(prompt, found[0][prompt.id], found[1][prompt.id]) for prompt in shared)
    models = [_model(path, log) for path, log in zip((small, large), found, strict=True)]
    return Joined(rows, _summary(rows, models, len(asked)))


def joined_text(joined: Joined) -> str:
    """The rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in joined.rows)


def _graded(path: Path, known: Mapping[str, Prompt]) -> dict[str, Mapping[str, Any]]:
    found = {}
    for line in read_log(path):
        key = str(line["id"])
        if key not in known or known[key].sha256 != line.get("sha256"):
            raise UsageError(f"{path} is of other prompts: '{key}' is not among these.")
        if line.get("correct") is not None:
            found[key] = line
    return found


def _model(path: Path, log: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    names = ("model", "quantization", "runtime")
    models = {tuple(line.get(n) for n in names) for line in log.values() if line.get("model")}
    if len(models) != 1:
        raise UsageError(f"{path} holds answers of {len(models)} models.", mend="Log each apart.")
    return dict(zip(names, models.pop(), strict=True))


def _row(prompt: Prompt, small: Mapping[str, Any], large: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": prompt.id, **prompt.about}
    if "subject" not in row and "task" not in row and "skill" in row:
        row["task"] = row["skill"]
    row |= {"prompt": prompt.text, "messages": list(prompt.messages)}
    if prompt.tools:
        row["tools"] = list(prompt.tools)
    return row | {
        "small_correct": int(small["correct"]),
        "large_correct": int(large["correct"]),
        "confidence": small.get("confidence"),
        "small_tokens": small.get("completion_tokens"),
        "large_tokens": large.get("completion_tokens"),
    }


def _summary(
    rows: tuple[Mapping[str, Any], ...], models: list[dict[str, Any]], asked: int
) -> dict[str, Any]:
    return {
        "n": len(rows),
        "not_graded": asked - len(rows),
        "q_small": sum(row["small_correct"] for row in rows) / len(rows),
        "q_large": sum(row["large_correct"] for row in rows) / len(rows),
        "small": models[0],
        "large": models[1],
    }
