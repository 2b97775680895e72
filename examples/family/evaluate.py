"""Run GGUF files over the held-back prompts, greedily, and count right answers.

``python -m examples.family.evaluate brook-q8_0.gguf ... --out results.json`` prints a table by
skill and level. Needs llama-cpp-python; a model of this size needs no accelerator.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from examples.family.generate import HERE
from examples.family.skills.common import LEVELS
from examples.family.template import render
from overspill.evals.grade import grade

Prompt = dict[str, Any]
Cells = dict[str, dict[str, tuple[int, int]]]


def read_prompts(path: Path) -> list[Prompt]:
    """Read the held-back prompts, one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(model: Path, prompts: Iterable[Prompt], threads: int = 1) -> list[str]:
    """Return the greedy answer to every prompt."""
    from llama_cpp import Llama

    llama = Llama(
        str(model),
        n_ctx=1024,
        n_batch=1024,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    out = []
    for prompt in prompts:
        text = render(prompt["messages"], prompt.get("tools", ()))
        ids = llama.tokenize(text.encode(), add_bos=False, special=True)
        result: Any = llama.create_completion(
            ids, max_tokens=prompt["max_tokens"], temperature=0.0, repeat_penalty=1.0
        )
        out.append(str(result["choices"][0]["text"]))
    return out


def count(prompts: Sequence[Prompt], replies: Sequence[str]) -> Cells:
    """Return skill -> level -> (right, asked)."""
    cells: Cells = {}
    for prompt, reply in zip(prompts, replies, strict=True):
        by_level = cells.setdefault(prompt["skill"], {})
        right, asked = by_level.get(prompt["level"], (0, 0))
        good = grade(prompt["grade"], prompt["expected"], reply)
        by_level[prompt["level"]] = (right + good, asked + 1)
    return cells


def percent(pairs: Iterable[tuple[int, int]]) -> float:
    """Return 100 * right / asked over several (right, asked)."""
    pairs = list(pairs)
    return 100 * sum(p[0] for p in pairs) / max(1, sum(p[1] for p in pairs))


def summary(cells: Cells) -> dict[str, float]:
    """Return the shares of right answers by level and overall, in percent."""
    totals = {
        level: round(percent(c[level] for c in cells.values() if level in c), 1) for level in LEVELS
    }
    totals["overall"] = round(percent(p for c in cells.values() for p in c.values()), 1)
    return totals


def table(cells: Cells) -> str:
    """Return the cells as text, one skill a line, in percent by level."""
    lines = []
    for skill, by_level in cells.items():
        values = (f"{percent([by_level[x]]):5.0f}" if x in by_level else "    -" for x in LEVELS)
        lines.append(f"{skill:15s}" + " ".join(values))
    totals = summary(cells)
    lines.append(f"{'all':15s}" + " ".join(f"{totals[x]:5.1f}" for x in LEVELS))
    return "\n".join([*lines, f"overall {totals['overall']}"])


def main() -> None:
    """Evaluate each file given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--prompts", type=Path, default=HERE / "eval_prompts.jsonl")
    parser.add_argument("--out", type=Path, help="write or update this JSON file")
    parser.add_argument("--show-wrong", type=int, default=0, help="print so many wrong answers")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    prompts = read_prompts(args.prompts)
    results = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for model in args.models:
        begun = time.perf_counter()
        replies = answers(model, prompts, args.threads)
        cells = count(prompts, replies)
        print(f"{model.name} ({time.perf_counter() - begun:.0f} s)\n{table(cells)}", flush=True)
        results[model.stem] = {"totals": summary(cells), "cells": cells}
        wrong = [
            (p, r)
            for p, r in zip(prompts, replies, strict=True)
            if not grade(p["grade"], p["expected"], r)
        ]
        for prompt, reply in wrong[:: max(1, len(wrong) // max(1, args.show_wrong))][
            : args.show_wrong
        ]:
            print(prompt["skill"], prompt["level"], repr(prompt["messages"][-1]["content"]))
            print("   want", repr(prompt["expected"]), "got", repr(reply))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
