"""Whether a model fits: all that it takes once its cache is full, against the memory there is.

A runtime that is short of memory is killed by the system, or has others killed: so this is
asked before anything is loaded, and the answer shows the arithmetic. What a file needs is worked
out by :mod:`~overspill.engines.gguf_memory` for llama.cpp and by
:mod:`~overspill.engines.mlx_memory` for MLX; what is free is read by
:mod:`~overspill.engines.live_memory`. Here is no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from overspill.engines.live_memory import available_memory
from overspill.errors import DoesNotFit

__all__ = [
    "F16_BYTES",
    "Fit",
    "MemoryNeed",
    "available_memory",
    "check_fits",
    "judge",
    "largest_context",
    "settle",
    "store_room",
]

F16_BYTES = 2
MIN_CONTEXT_TOKENS = 512
"""No context is made smaller than this: less holds no conversation."""
CONTEXT_STEP_TOKENS = 256
TIGHT_SHARE = 0.9
"""Of the free memory; what takes more leaves others too little."""
_MIB = 1 << 20

Verdict = Literal["fits", "tight", "does_not_fit"]


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a loaded model takes, in bytes, its cache grown to its full size.

    ``repacked_bytes`` is a second copy of weights, in another layout; ``kv_bytes`` holds the state
    of recurrent layers too; ``compute_bytes`` is what a step works in; ``runtime_bytes`` are the
    vocabulary and the outputs. ``reclaimable_bytes``, of the weights, are pages of the file that
    nobody reads after loading: the system drops them when memory runs short.
    """

    weights_bytes: int
    kv_bytes: int
    repacked_bytes: int = 0
    compute_bytes: int = 0
    runtime_bytes: int = 0
    reclaimable_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it together."""
        return (
            self.weights_bytes
            + self.repacked_bytes
            + self.kv_bytes
            + self.compute_bytes
            + self.runtime_bytes
        )

    @property
    def least_bytes(self) -> int:
        """What is left of it when the system has dropped what it can."""
        return self.total_bytes - self.reclaimable_bytes

    def __str__(self) -> str:
        parts = (
            (self.weights_bytes, "weights"),
            (self.repacked_bytes, "their repacked copy"),
            (self.kv_bytes, "the KV cache"),
            (self.compute_bytes, "computing"),
            (self.runtime_bytes, "vocabulary and outputs"),
        )
        named = [f"{_mib(size)} for {name}" for size, name in parts if size]
        return f"{_mib(self.total_bytes)} MiB ({', '.join(named)})"


@dataclass(frozen=True, slots=True)
class Fit:
    """A verdict with its numbers; ``available_bytes`` None where nobody knows.

    ``context_tokens`` (per sequence) is what the need was worked out for; ``wanted_tokens`` what
    was asked for, where that is more.
    """

    verdict: Verdict
    need: MemoryNeed
    available_bytes: int | None
    context_tokens: int
    max_sequences: int
    wanted_tokens: int | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user has to know: a context made smaller, memory that is tight."""
        notes = []
        if self.wanted_tokens is not None:
            notes.append(
                f"context made smaller to fit the memory: {self.context_tokens} tokens instead "
                f"of {self.wanted_tokens}"
            )
        if self.verdict == "tight":
            notes.append(f"memory is tight: {self.describe()}")
        return tuple(notes)

    def describe(self) -> str:
        """The arithmetic in one line."""
        free = self.available_bytes
        there = "what is free is unknown" if free is None else f"{_mib(free)} MiB are free"
        sequences = "sequence" if self.max_sequences == 1 else "sequences"
        return (
            f"{self.need}, with {self.max_sequences} {sequences} of {self.context_tokens} "
            f"tokens; {there}"
        )


def judge(
    need: MemoryNeed,
    available_bytes: int | None,
    *,
    context_tokens: int,
    max_sequences: int,
    wanted_tokens: int | None = None,
) -> Fit:
    """``does_not_fit`` where even the least doesn't, ``tight`` over nine tenths of what is free.

    Where nobody knows what is free, a model fits: it is not refused for a missing number.
    """
    verdict: Verdict = "fits"
    if available_bytes is not None:
        if need.least_bytes > available_bytes:
            verdict = "does_not_fit"
        elif need.total_bytes > TIGHT_SHARE * available_bytes:
            verdict = "tight"
    return Fit(verdict, need, available_bytes, context_tokens, max_sequences, wanted_tokens)


def check_fits(fit: Fit, name: str) -> None:
    """Raise :class:`DoesNotFit` with the arithmetic."""
    if fit.verdict == "does_not_fit":
        raise DoesNotFit(
            f"{name} does not fit: it takes {fit.describe()}.",
            mend="Ask for a smaller context or fewer sequences, allow a smaller context "
            "(shrink_context), or use a smaller model.",
        )


def largest_context(
    need_of: Callable[[int], MemoryNeed], available_bytes: int, *, wanted_tokens: int
) -> int | None:
    """The most tokens, below ``wanted_tokens``, whose need fits without being tight.

    A multiple of 256, as caches are made; None where not even 512 fit.
    """
    low = MIN_CONTEXT_TOKENS // CONTEXT_STEP_TOKENS
    high = (wanted_tokens - 1) // CONTEXT_STEP_TOKENS
    room = TIGHT_SHARE * available_bytes

    def fits(steps: int) -> bool:
        return need_of(steps * CONTEXT_STEP_TOKENS).least_bytes <= room

    if high < low or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low * CONTEXT_STEP_TOKENS


def settle(
    need_of: Callable[[int], MemoryNeed],
    name: str,
    *,
    context_tokens: int,
    max_sequences: int,
    available_bytes: int | None,
    shrink: bool,
) -> Fit:
    """The fit of ``context_tokens`` per sequence, or with ``shrink`` of the largest that fits.

    Raises :class:`DoesNotFit` with the arithmetic.
    """
    fit = judge(
        need_of(context_tokens),
        available_bytes,
        context_tokens=context_tokens,
        max_sequences=max_sequences,
    )
    if shrink and fit.verdict == "does_not_fit" and available_bytes is not None:
        smaller = largest_context(need_of, available_bytes, wanted_tokens=context_tokens)
        if smaller is not None:
            fit = judge(
                need_of(smaller),
                available_bytes,
                context_tokens=smaller,
                max_sequences=max_sequences,
                wanted_tokens=context_tokens,
            )
    check_fits(fit, name)
    return fit


def store_room(wanted_bytes: int, need_bytes: int, available_bytes: int | None) -> int:
    """Bytes for what may be kept beside a model: as wanted, as long as memory isn't tight with it.

    ``need_bytes`` is what the model takes of ``available_bytes``, which were free before it.
    """
    if available_bytes is None:
        return wanted_bytes
    return max(0, min(wanted_bytes, int(TIGHT_SHARE * available_bytes) - need_bytes))


def _mib(size: int) -> str:
    return f"{size / _MIB:,.0f}"
