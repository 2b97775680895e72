"""The estimate before loading, against the bytes that a process then takes."""

from __future__ import annotations

import asyncio
import json
import sys

from overspill.bench.figures import FigureSpec, at_most
from overspill.bench.rounds import Samples
from overspill.bench.suite import Bench, Entry, Outcome
from overspill.config import child_environment
from overspill.errors import EngineError

CONTEXT_TOKENS, SEQUENCES = 2048, 4
_MIB = 1 << 20


def fit_estimate(name: str, shape: str, *, asked: float) -> Entry:
    """Loads the model in a process of its own, fills a context, and asks for its memory."""
    error = FigureSpec(
        f"engine.{name}.error",
        "share",
        f"how far the memory estimate, {shape}, is off what loading and a full context take",
        at_most(asked),
    )

    async def run(bench: Bench) -> Outcome:
        model = await bench.model(shape)
        context = min(CONTEXT_TOKENS, bench.effort.long_prompt_tokens)
        told = await _probe(str(model), str(context), str(SEQUENCES))
        taken, estimate = told["taken"], told["estimate"]
        return Outcome(
            {error.name: abs(estimate - taken) / taken},
            (
                Samples("taken", "MiB", (taken / _MIB,)),
                Samples("estimate", "MiB", (estimate / _MIB,)),
            ),
        )

    return Entry(name, (error,), run)


async def _probe(*arguments: str) -> dict[str, int]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "overspill.bench.load_probe", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=child_environment(),
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        last = err.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise EngineError(f"Loading ended with code {process.returncode}: {last[0]}")
    told: dict[str, int] = json.loads(out)
    return told
