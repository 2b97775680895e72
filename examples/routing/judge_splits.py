"""Judge a scorer and its guarantee on other prompts than it was fitted on.

    python -m examples.routing.judge_splits known/results.jsonl new/results.jsonl --out judged.csv
    python -m examples.routing.judge_splits --judged judged.csv

The scorer is fitted on the first file; near-duplicates of that are dropped from the second. What it
says of each prompt, and what both models made of that, is written to ``judged.csv``. Then a
threshold is certified on 500 of these and counted on the rest, 300 times: how often regret is over
epsilon there, and which part of the truly allowed share it keeps on the device. Beside it a
threshold that was tuned on the same 500.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from overspill.evals import metrics
from overspill.evals.data import Columns, load
from overspill.evals.fit import Design, FitOptions, Task, features_of, fit
from overspill.evals.folds import near_duplicates
from overspill.evals.metrics import Floats, Outcomes
from overspill.evals.predict import predict
from overspill.routing.calibration import learn_then_test

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Judged:
    """The predicted gain of each prompt, shape (n,), and what both models made of it."""

    gain: Floats
    outcomes: Outcomes

    @property
    def regret(self) -> Floats:
        """What staying on the device costs each prompt."""
        return np.maximum(self.outcomes.gain, 0.0)


def judge(known_file: Path, new_file: Path) -> Judged:
    """Fit on the one file, predict the other."""
    known, new = (load(path, Columns()) for path in (known_file, new_file))
    clusters = near_duplicates(known.prompts + new.prompts)
    kept = np.flatnonzero(~np.isin(clusters[len(known) :], clusters[: len(known)]))
    new = new.take(kept)
    features = features_of([*known.asked, *new.asked], FitOptions().buckets)
    design = Design.of(features)
    labels = np.column_stack([known.outcomes.small, known.outcomes.large])
    rows, asked = np.arange(len(known)), len(known) + np.arange(len(new))
    (scorer,) = fit(Task(design.take(rows), labels, known.groups), FitOptions())
    found = predict(scorer, design.take(asked), features[len(known) :])
    return Judged(found.gain.round(_DIGITS), new.outcomes)


def write(judged: Judged, path: Path) -> None:
    """One row for each prompt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["gain", "small", "large"])
        rows = zip(judged.gain, judged.outcomes.small, judged.outcomes.large, strict=True)
        writer.writerows([f"{gain:g}", f"{small:g}", f"{large:g}"] for gain, small, large in rows)


def read(path: Path) -> Judged:
    """What :func:`write` wrote."""
    gain, small, large = np.loadtxt(path, delimiter=",", skiprows=1, unpack=True)
    return Judged(gain, Outcomes(small, large))


def order(judged: Judged) -> dict[str, float | None]:
    """What the order is worth, and how far under the large model half of the calls leave it."""
    at_half = metrics.accuracy_at(judged.gain, judged.outcomes, (0.5,))["0.5"]
    under = 100 * (float(judged.outcomes.large.mean()) - at_half)
    return {**metrics.ranking(judged.gain, judged.outcomes), "points_under_at_half": under}


def guarantee(
    judged: Judged, epsilon: float = 0.05, delta: float = 0.1, labels: int = 500, splits: int = 300
) -> dict[str, float]:
    """Shares of the splits that break the promise, and of the allowed share that is kept."""
    gain, regret = judged.gain, judged.regret
    allowed = tuned(gain, regret, epsilon)
    allowed_share = float((gain <= allowed).mean())
    rng = np.random.default_rng(0)
    broken, over, broken_tuned, shares = 0, 0, 0, []
    for _ in range(splits):
        rows = rng.permutation(len(gain))
        own, rest = rows[:labels], rows[labels:]
        found = learn_then_test(gain[own].tolist(), regret[own].tolist(), epsilon, delta)
        threshold = -np.inf if found is None else found.threshold
        by_hand = tuned(gain[own], regret[own], epsilon)
        broken += float((regret * (gain <= threshold))[rest].mean()) > epsilon
        broken_tuned += float((regret * (gain <= by_hand))[rest].mean()) > epsilon
        over += threshold > allowed and float((regret * (gain <= threshold)).mean()) > epsilon
        shares.append(float((gain <= threshold).mean()))
    return {
        "broken_on_the_rest": broken / splits,
        "over_the_allowed": over / splits,
        "broken_by_a_tuned_threshold": broken_tuned / splits,
        "share": float(np.mean(shares)),
        "allowed_share": allowed_share,
        "share_of_allowed": float(np.mean(shares)) / allowed_share,
    }


def tuned(gain: Floats, regret: Floats, epsilon: float) -> float:
    """The largest threshold that these prompts allow; minus infinity where none is."""
    rows = np.argsort(gain, kind="stable")
    kept = np.flatnonzero(np.cumsum(regret[rows]) / len(gain) <= epsilon)
    return float(gain[rows][kept[-1]]) if len(kept) else -np.inf


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="known and new results")
    parser.add_argument("--judged", type=Path, help="what an earlier run wrote")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.judged is None and len(args.files) != 2:
        parser.error("name two files of results, or one with --judged")
    judged = read(args.judged) if args.judged is not None else judge(*args.files)
    if args.out is not None:
        write(judged, args.out)
    print(json.dumps({"n": len(judged.gain), **order(judged), **guarantee(judged)}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
