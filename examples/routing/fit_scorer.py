"""Fit the routing scorer's two heads on results of a small and a large model, prompt by prompt.

    python examples/routing/fit_scorer.py results.jsonl --device brook --cloud river \\
        --exclude sdk/overspill/cli/demo_prompts.json

Each line of the results is ``{"messages": [...] or "prompt": "...", "small_correct": 0..1,
"large_correct": 0..1}``, with ``tools`` and ``skill`` where there are any. Prompts whose user
text stands in an ``--exclude`` file are left out: what a scorer is shown on must not be in its
fit. The two heads are ridge regressions on what the features add to the share of right answers;
the ridge is chosen by cross-validation, with equal prompts in one fold. Needs numpy.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overspill.routing.complexity import Scorer
from overspill.routing.features import Features, extract
from overspill.routing.normalise import normalise
from overspill.types.card import ModelCard
from overspill.types.chat import Message, Request, Tool, ToolCall
from overspill.types.route import Route

Floats = NDArray[np.float64]
BUCKETS = 8192
FOLDS = 5
RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0)
# An n-gram says less than the structure does, and there are many of them.
NGRAM_SCALES = (0.0, 1.0, 3.0, 6.0)
DIGITS = 4
SCORER = Path(__file__).resolve().parents[2] / "sdk/overspill/routing/scorer.json"


@dataclass(frozen=True)
class Row:
    """One prompt's features, both models' results, and the fold that its text falls into."""

    features: Features
    labels: tuple[float, float]
    fold: int


def as_request(record: dict[str, Any]) -> Request:
    """A line's prompt or messages as a request."""
    raw = record.get("messages") or [{"role": "user", "content": record["prompt"]}]
    tools = (tool.get("function", tool) for tool in record.get("tools", ()))
    return Request(
        messages=tuple(map(_message, raw)),
        tools=tuple(
            Tool(t["name"], t.get("description", ""), t.get("parameters", {})) for t in tools
        ),
    )


def _message(raw: dict[str, Any]) -> Message:
    calls = tuple(
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in raw.get("tool_calls") or ()
    )
    return Message(raw["role"], raw.get("content") or "", calls, raw.get("tool_call_id"))


def user_text(request: Request) -> str:
    """What identifies a prompt: all that the user says, in one spacing."""
    return "\n".join(normalise(request).user_turns)


def excluded_texts(paths: Iterable[Path]) -> set[str]:
    """The user texts of prompt files, as JSON lists or JSON lines."""
    texts = set()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        records = json.loads(text) if text.lstrip().startswith("[") else _lines(text)
        texts |= {user_text(as_request(record)) for record in records}
    return texts


def _lines(text: str) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in text.splitlines() if line.strip())


def load(path: Path, excluded: set[str]) -> list[Row]:
    """Rows of a results file; prompts that are excluded are left out."""
    rows = []
    for record in _lines(path.read_text(encoding="utf-8")):
        request = as_request(record)
        text = user_text(request)
        if text in excluded:
            continue
        rows.append(
            Row(
                features=extract(normalise(request), request, BUCKETS),
                labels=(float(record["small_correct"]), float(record["large_correct"])),
                fold=hashlib.sha256(text.encode()).digest()[0] % FOLDS,
            )
        )
    return rows


@dataclass(frozen=True)
class Design:
    """Rows as a matrix: the structure's columns first, then one per n-gram bucket met."""

    matrix: Floats
    labels: Floats
    names: list[str]
    buckets: list[int]

    @classmethod
    def of(cls, rows: list[Row]) -> Design:
        """The matrix of some rows, with a column for every feature that occurs."""
        names = sorted({name for row in rows for name in row.features.structure})
        buckets = sorted({bucket for row in rows for bucket in row.features.ngrams})
        column = {name: i for i, name in enumerate(names)}
        column_of_bucket = {bucket: len(names) + i for i, bucket in enumerate(buckets)}
        matrix = np.zeros((len(rows), len(names) + len(buckets)))
        for i, row in enumerate(rows):
            for name, value in row.features.structure.items():
                matrix[i, column[name]] = value
            for bucket, value in row.features.ngrams.items():
                matrix[i, column_of_bucket[bucket]] = value
        return cls(matrix, np.array([row.labels for row in rows]), names, buckets)


def fit(rows: list[Row], pair: tuple[str, str], ridge: float, ngram_scale: float) -> Scorer:
    """Both heads at once, in the dual form: there are more features than prompts."""
    design = Design.of(rows)
    prior = design.labels.mean(axis=0)
    scale = np.ones(design.matrix.shape[1])
    scale[len(design.names) :] = ngram_scale
    scaled = design.matrix * scale
    gram = scaled @ scaled.T + ridge * np.eye(len(rows))
    weights = (scaled.T @ np.linalg.solve(gram, design.labels - prior)) * scale[:, None]
    pairs = [(round(float(w[0]), DIGITS), round(float(w[1]), DIGITS)) for w in weights]
    split = len(design.names)
    ngrams = dict(zip(design.buckets, pairs[split:], strict=True))
    return Scorer(
        fitted_for=pair,
        prior=(round(float(prior[0]), DIGITS), round(float(prior[1]), DIGITS)),
        structure=dict(zip(design.names, pairs[:split], strict=True)),
        ngrams={bucket: weight for bucket, weight in ngrams.items() if any(weight)},
        buckets=BUCKETS,
        seen=_bits(design.buckets),
    )


def _bits(buckets: Iterable[int]) -> bytes:
    bits = bytearray(BUCKETS // 8)
    for bucket in buckets:
        bits[bucket >> 3] |= 1 << (bucket & 7)
    return bytes(bits)


def scores(scorer: Scorer, rows: list[Row]) -> Floats:
    """P(device right), P(cloud right) and the gain for each row, as routing computes them."""
    cards = {
        route: ModelCard(name=name, context=1, runtime="fit")
        for route, name in zip((Route.DEVICE, Route.CLOUD), scorer.fitted_for, strict=True)
    }
    found = [scorer.score(row.features, cards) for row in rows]
    return np.array([(s.p_device_right, s.p_cloud_right, s.gain) for s in found])


def cross_fitted(
    rows: list[Row], pair: tuple[str, str], ridge: float, ngram_scale: float
) -> Floats:
    """Scores of each row by a fit that has not seen its fold."""
    result = np.zeros((len(rows), 3))
    for fold in range(FOLDS):
        inside = [row for row in rows if row.fold != fold]
        outside = [i for i, row in enumerate(rows) if row.fold == fold]
        if outside and inside:
            scorer = fit(inside, pair, ridge, ngram_scale)
            result[outside] = scores(scorer, [rows[i] for i in outside])
    return result


def apgr(gain: Floats, labels: Floats) -> float:
    """Mean share of the quality gap that is recovered, over all cut points; random is 0.5."""
    small, large = labels[:, 0], labels[:, 1]
    order = np.argsort(-gain, kind="stable")
    curve = np.concatenate([[0.0], np.cumsum((large - small)[order])])
    total = curve[-1]
    return float(np.trapezoid(curve / total, dx=1 / len(small))) if total else float("nan")


def report(rows: list[Row], crossed: Floats) -> dict[str, Any]:
    """What the cross-fitted scorer would have done, against sending all to either model."""
    labels = np.array([row.labels for row in rows])
    length = np.array([len(row.features.ngrams) for row in rows], dtype=float)
    result: dict[str, Any] = {
        "prompts": len(rows),
        "right_all_device": round(float(labels[:, 0].mean()), 4),
        "right_all_cloud": round(float(labels[:, 1].mean()), 4),
        "apgr": round(apgr(crossed[:, 2], labels), 4),
        "apgr_length": round(apgr(length, labels), 4),
        "apgr_oracle": round(apgr(labels[:, 1] - labels[:, 0], labels), 4),
        "brier_device": round(float(((crossed[:, 0] - labels[:, 0]) ** 2).mean()), 4),
        "brier_cloud": round(float(((crossed[:, 1] - labels[:, 1]) ** 2).mean()), 4),
        "thresholds": {},
    }
    for threshold in (0.0, 0.02, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5):
        leaves = crossed[:, 2] > threshold
        right = np.where(leaves, labels[:, 1], labels[:, 0]).mean()
        result["thresholds"][str(threshold)] = {
            "right": round(float(right), 4),
            "device_share": round(float(1 - leaves.mean()), 4),
        }
    return result


def choose(rows: list[Row], pair: tuple[str, str]) -> tuple[float, float, Floats]:
    """The ridge and n-gram scale whose cross-fitted heads and gain are closest to what was.

    By the gain alone the heads would shrink too far: it is mostly noise where the models differ
    on few prompts.
    """
    labels = np.array([row.labels for row in rows])
    truth = np.column_stack([labels, labels[:, 1] - labels[:, 0]])
    tried = []
    for ridge in RIDGES:
        for scale in NGRAM_SCALES:
            crossed = cross_fitted(rows, pair, ridge, scale)
            error = float(((crossed - truth) ** 2).mean())
            tried.append((error, ridge, scale, crossed))
    _, ridge, scale, crossed = min(tried, key=lambda one: one[:3])
    return ridge, scale, crossed


def to_json(scorer: Scorer, about: dict[str, Any]) -> str:
    """The file that :meth:`Scorer.from_json` reads; ``about`` says how it came to be."""
    data = {
        "about": about,
        "fitted_for": dict(zip(("device", "cloud"), scorer.fitted_for, strict=True)),
        "prior": dict(zip(("device", "cloud"), scorer.prior, strict=True)),
        "structure": scorer.structure,
        "ngrams": {str(bucket): weights for bucket, weights in scorer.ngrams.items()},
        "buckets": scorer.buckets,
        "seen": base64.b64encode(scorer.seen).decode(),
    }
    return json.dumps(data, separators=(",", ":")).replace('"fitted_for"', '\n"fitted_for"') + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--device", required=True, help="name of the small model's card")
    parser.add_argument("--cloud", required=True, help="name of the large model's card")
    parser.add_argument("--exclude", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path, default=SCORER)
    args = parser.parse_args()
    pair = (args.device, args.cloud)
    rows = load(args.results, excluded_texts(args.exclude))
    ridge, scale, crossed = choose(rows, pair)
    about = {
        "excluded": [path.name for path in args.exclude],
        "ridge": ridge,
        "ngram_scale": scale,
        "cross_fitted": report(rows, crossed),
    }
    args.out.write_text(to_json(fit(rows, pair, ridge, scale), about), encoding="utf-8")
    print(json.dumps(about, indent=2))
    print(f"wrote {args.out} ({args.out.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
