"""Ask two models the same held-back prompts and write down who was right, for ``fit_scorer.py``.

    python -m examples.routing.collect_results brook.gguf river.gguf --out build/results.jsonl

The prompts come from the part that the models' training never sees, by a seed of their own, so
they are neither the evaluation's nor the demo's. Greedy answers, graded mechanically; about a
quarter of an hour on two cores. Needs llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from examples.family.evaluate import answers
from examples.family.generate import as_prompt, held_back
from overspill.evals.grade import grade

SEED = 7003


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("small", type=Path)
    parser.add_argument("large", type=Path)
    parser.add_argument("--per-cell", type=int, default=50, help="prompts per skill and level")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    prompts = [as_prompt(record) for record in held_back(SEED, args.per_cell)]
    results = {
        f"{size}_correct": [
            grade(prompt["grade"], prompt["expected"], answer)
            for prompt, answer in zip(prompts, answers(model, prompts, args.threads), strict=True)
        ]
        for size, model in (("small", args.small), ("large", args.large))
    }
    rows = zip(prompts, *results.values(), strict=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", encoding="utf-8") as out:
        for prompt, small, large in rows:
            out.write(json.dumps({**prompt, "small_correct": small, "large_correct": large}) + "\n")
    for name, right in results.items():
        print(f"{name}: {sum(right)} of {len(right)}")


if __name__ == "__main__":
    main()
