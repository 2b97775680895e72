"""Make the family's own routing data: held-back prompts, both models' logs, and their join.

    python -m examples.routing.collect_results brook.gguf river.gguf --out build/family

The prompts come from the part that the models' training never sees, by a seed of their own, so
they are neither the evaluation's nor the demo's. In the folder: ``prompts.jsonl``, a log of
`overspill eval run` for each model (signals, and the device's state logits), ``results.jsonl`` for
`overspill eval routing`, `overspill calibrate` and ``fit_scorer.py``. Ended runs go on where they
were. Some minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from examples.family.generate import as_prompt, held_back
from overspill.cli.main import main as overspill

SEED = 7003


def write_prompts(path: Path, seed: int, per_cell: int) -> None:
    """So many held-back prompts of each skill and level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [as_prompt(record) for record in held_back(seed, per_cell)]
    named = ({"id": f"{seed}-{n}", **record} for n, record in enumerate(records, 1))
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in named)
    path.write_text("".join(lines), encoding="utf-8")


def commands(folder: Path, small: Path, large: Path) -> list[list[str]]:
    """What is run, in order."""
    names = ("prompts", "small", "large", "results")
    prompts, small_log, large_log, results = (str(folder / f"{name}.jsonl") for name in names)
    play = ["eval", "run", "--prompts", prompts, "--resume"]
    join = ["eval", "join", "--prompts", prompts, "--out", results]
    return [
        [*play, "--out", small_log, "--model", str(small), "--state-logits", "128"],
        [*play, "--out", large_log, "--model", str(large)],
        [*join, "--small", small_log, "--large", large_log],
    ]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("small", type=Path)
    parser.add_argument("large", type=Path)
    parser.add_argument("--per-cell", type=int, default=50, help="prompts per skill and level")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    args = parser.parse_args()
    write_prompts(args.out / "prompts.jsonl", args.seed, args.per_cell)
    return next(filter(None, map(overspill, commands(args.out, args.small, args.large))), 0)


if __name__ == "__main__":
    sys.exit(main())
