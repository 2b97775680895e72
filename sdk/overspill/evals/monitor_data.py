"""What the monitor learns from: the device's log of signals beside both models' correctness.

At each check the features are those that routing computes, from the signals that it would have
had by then; an answer that ended before a check has none there, and is judged at its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overspill.errors import UsageError
from overspill.evals.metrics import Floats, Outcomes
from overspill.evals.players import state_ids
from overspill.evals.run_log import read_log
from overspill.routing.monitor_features import PROMPT_LIFT, features
from overspill.routing.monitor_policy import CHECKS, END
from overspill.types.chat import TokenSignal

Ints = NDArray[np.intp]
ALL_CHECKS = (*map(str, CHECKS), END)


@dataclass(frozen=True, slots=True)
class Watched:
    """Answers of one device model, n of them. ``values`` has for each check a row of features for
    each answer, of NaN where the answer had ended before; ``names`` its columns. ``tokens`` are
    the answers' lengths, shape (n,).
    """

    names: Mapping[str, tuple[str, ...]]
    values: Mapping[str, Floats]
    tokens: Ints
    outcomes: Outcomes
    model: Mapping[str, str]
    state_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def with_prompt_lift(self, lift: Floats) -> Watched:
        """The same with stage 3's word on each prompt, shape (n,), as one more feature. It has to
        come from a scorer that had not seen the prompt."""
        return replace(
            self,
            names={check: (*names, PROMPT_LIFT) for check, names in self.names.items()},
            values={c: np.column_stack([values, lift]) for c, values in self.values.items()},
        )

    def take(self, rows: Ints) -> Watched:
        """Some of the answers."""
        return Watched(
            self.names,
            {check: values[rows] for check, values in self.values.items()},
            self.tokens[rows],
            self.outcomes.take(rows),
            self.model,
            self.state_ids,
        )


def load_watched(log: Path, ids: Sequence[str], outcomes: Outcomes) -> Watched:
    """The answers to the prompts with these ids, in their order.

    Raises ``UsageError`` where the log lacks one, holds several models, or has no signals.
    """
    lines = {str(line["id"]): line for line in read_log(log)}
    missing = [key for key in ids if key not in lines]
    if missing:
        raise UsageError(
            f"{log} has no line for '{missing[0]}' and {len(missing) - 1} others.",
            mend="Log the same prompts: `overspill eval run --route device`.",
        )
    chosen = [lines[key] for key in ids]
    found = [_signals(log, line) for line in chosen]
    tokens = [int(line["completion_tokens"]) for line in chosen]
    answers = list(zip(found, tokens, strict=True))
    per_check = {check: [_at(*one, check) for one in answers] for check in ALL_CHECKS}
    names = {check: _names(rows) for check, rows in per_check.items()}
    states = {len(signals[0].state) for signals in found}
    if len(states) != 1:
        raise UsageError(f"{log} was written with several numbers of state logits.")
    return Watched(
        names,
        {check: _matrix(rows, names[check]) for check, rows in per_check.items()},
        np.array(tokens, dtype=np.intp),
        outcomes,
        _model(log, chosen),
        state_ids(states.pop()),
    )


def _signals(log: Path, line: Mapping[str, Any]) -> tuple[TokenSignal, ...]:
    told = line.get("signals") or {}
    columns = [told.get(n) or () for n in ("token_ids", "logprobs", "margins", "entropies")]
    if not columns[0] or None in columns[3]:
        raise UsageError(
            f"{log}: the answer to '{line['id']}' came without the device's signals.",
            mend="Use a log of `overspill eval run --route device`.",
        )
    found = [TokenSignal(*values) for values in zip(*columns, strict=True)]
    first = found[0]
    state = tuple(told.get("state") or ())
    found[0] = TokenSignal(first.token_id, first.logprob, first.margin, first.entropy, state)
    return tuple(found)


def _at(signals: Sequence[TokenSignal], tokens: int, check: str) -> dict[str, float] | None:
    """The features at a check; None where the answer has fewer tokens."""
    if check == END:
        return features(signals)
    return features(signals, int(check)) if tokens >= int(check) else None


def _names(rows: Sequence[dict[str, float] | None]) -> tuple[str, ...]:
    return tuple(sorted({name for row in rows if row for name in row}))


def _matrix(rows: Sequence[dict[str, float] | None], names: tuple[str, ...]) -> Floats:
    missing = dict.fromkeys(names, float("nan"))
    return np.array([[(row or missing)[name] for name in names] for row in rows])


def _model(log: Path, lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    fields = ("model", "quantization", "runtime", "model_sha256")
    models = {tuple(str(line.get(name) or "") for name in fields) for line in lines}
    if len(models) != 1:
        raise UsageError(f"{log} holds answers of {len(models)} models.", mend="Log each apart.")
    return dict(zip(fields, models.pop(), strict=True))
