"""A quick measurement for a plan: the model alone, at one stream, and doubled up to its slots."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from overspill.engines.base import Engine
from overspill.engines.options import EngineOptions
from overspill.errors import UsageError
from overspill.types.chat import Message, Request, Sampling
from overspill_cloud.app import ModelSpec, open_model
from overspill_cloud.ops.capacity import Level, Load
from overspill_cloud.upstream.engine import UpstreamEngine

MOST_PROMPT_TOKENS = 512
MOST_ANSWER_TOKENS = 64
"""A plan is wanted in a minute: rates are taken over so much, and prompts' time counts."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one node does; ``kv_tokens`` None where the engine does not say."""

    levels: Sequence[Level]
    kv_tokens: int | None
    memory_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """As `overspill-cloud plan --measured` reads it."""
        return {
            "levels": [asdict(level) for level in self.levels],
            "kv_tokens": self.kv_tokens,
            "memory_bytes": self.memory_bytes,
        }


async def measure_levels(spec: ModelSpec, options: EngineOptions, load: Load) -> Measured:
    """Open the model, and run 1, 2, 4, ... streams up to its slots at once.

    Raises what opening and answering raise, ``UsageError`` where nothing was answered.
    """
    async with open_model(spec, options) as engine:
        slots = options.max_sequences
        if isinstance(engine, UpstreamEngine):
            slots = engine.sequences or slots
        await _together(engine, 1, load)  # warm
        counts = sorted({1 << n for n in range(slots.bit_length()) if 1 << n <= slots} | {slots})
        levels = [await _together(engine, streams, load) for streams in counts]
        kv_tokens = engine.card.context * slots or None
        return Measured(levels, kv_tokens, engine.card.memory_bytes)


async def _together(engine: Engine, streams: int, load: Load) -> Level:
    """So many at once, each with a prompt of its own: tokens of all over the whole time."""
    start_s = time.perf_counter()
    counts = await asyncio.gather(*(_one(engine, number, load) for number in range(streams)))
    seconds = time.perf_counter() - start_s
    if not sum(counts):
        raise UsageError(f"{engine.card.name} gave no token.", mend="Look at its answers first.")
    return Level(streams, sum(counts) / seconds)


async def _one(engine: Engine, number: int, load: Load) -> int:
    room = max(1, engine.card.context // 2 if engine.card.context else MOST_PROMPT_TOKENS)
    words = min(load.prompt_tokens, MOST_PROMPT_TOKENS, room) // 2
    request = Request(
        (Message("user", f"Count on from {number}: " + "and so " * max(1, words // 2)),),
        max_tokens=min(load.answer_tokens, MOST_ANSWER_TOKENS),
        # Hot, so that a small model does not end at once; a seed, so that it is the same each time.
        sampling=Sampling(temperature=1.0, seed=number),
        app=f"plan-{number}",
    )
    tokens = 0
    async for chunk in engine.generate(request):
        if chunk.finish is not None:
            tokens = chunk.finish.usage.completion_tokens
    return tokens
