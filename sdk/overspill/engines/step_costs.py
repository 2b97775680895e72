"""What steps cost, as measured: seconds by number of rows, and prompt tokens per second.

A *row* is a token whose logits are wanted while an answer is written; one that checks a draft
counts like one that goes on. Pure: it is told what a step held and how long it took.
"""

from __future__ import annotations

WEIGHT = 0.2
"""Of a new measurement against all before it."""
WORSE_WEIGHT = 0.5
"""The same where chunks beside decoding turn out dearer: others wait for them by mistake."""
MOST_TIMES = 3.0
"""A step that was held up by something else counts as at most so many times the usual."""
PRIOR_ROW_COST = 0.3
"""Of a step with one row: what each further row adds, until it was measured."""
MIN_RATE_TOKENS = 64
"""Smaller steps measure decoding, not prefill."""


class StepCosts:
    """Running means, robust against a step that was interrupted by other work."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._stale: set[int] = set()
        self._prefill_tokens_per_s: float | None = None
        self._beside_s: float | None = None

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """As measured where prompts were most of a step; None before that."""
        return self._prefill_tokens_per_s

    @property
    def beside_tokens_per_s(self) -> float | None:
        """The same beside decoding sequences, as the last such steps were: chunks are short there,
        and the weights are read once more for them. The plain rate before any, and at most."""
        if self._beside_s is None or self._prefill_tokens_per_s is None:
            return self._prefill_tokens_per_s
        return 1 / max(self._beside_s, 1 / self._prefill_tokens_per_s)

    def note(self, rows: int, prompt_tokens: int, took_s: float) -> None:
        """A step with so many decoding rows and so many tokens of prompts took so long."""
        if took_s <= 0:
            return
        if prompt_tokens == 0:
            old = None if rows in self._stale else self._seconds.get(rows)
            self._seconds[rows] = _mean(old, took_s)
            self._stale.discard(rows)
            return
        added_s = took_s - ((self.decode_s(rows) or 0.0) if rows else 0.0)
        if rows:
            self._beside_s = _dearer_at_once(self._beside_s, max(0.0, added_s) / prompt_tokens)
        if prompt_tokens + rows >= MIN_RATE_TOKENS or prompt_tokens > 4 * rows:
            self._note_prefill(prompt_tokens, added_s)

    def decode_s(self, rows: int) -> float | None:
        """What a step with so many rows takes; estimated from others, None before any."""
        if rows in self._seconds:
            return self._seconds[rows]
        below = max((r for r in self._seconds if r < rows), default=None)
        above = min((r for r in self._seconds if r > rows), default=None)
        if below is None:
            # With fewer rows a step isn't dearer.
            return None if above is None else self._seconds[above]
        least = self._seconds[below]
        if above is None:
            return least * (1 + PRIOR_ROW_COST * rows) / (1 + PRIOR_ROW_COST * below)
        share = (rows - below) / (above - below)
        return least + share * (max(self._seconds[above], least) - least)

    def forget_above(self, rows: int) -> None:
        """Measure larger steps anew: they may have been measured in a bad moment."""
        self._seconds = {r: seconds for r, seconds in self._seconds.items() if r <= rows}

    def distrust(self) -> None:
        """Something changed that all steps depend on: the next measurement of each counts alone,
        and until then the last one is the best guess."""
        self._stale = set(self._seconds)

    def _note_prefill(self, prompt_tokens: int, added_s: float) -> None:
        if added_s > 0:
            rate, old = prompt_tokens / added_s, self._prefill_tokens_per_s
            self._prefill_tokens_per_s = rate if old is None else old + WEIGHT * (rate - old)


def _mean(old: float | None, new: float, weight: float = WEIGHT) -> float:
    return new if old is None else old + weight * (min(new, MOST_TIMES * old) - old)


def _dearer_at_once(old: float | None, new: float) -> float:
    return _mean(old, new, WORSE_WEIGHT if old is not None and new > old else WEIGHT)
