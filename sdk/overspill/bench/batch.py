"""`overspill batch` against the engine that it works with: the same prompts, sixteen at once."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from overspill.bench import ours
from overspill.bench.figures import FigureSpec, at_least
from overspill.bench.rounds import Side, alternate
from overspill.bench.stats import paired_ratio
from overspill.bench.streams import StreamTimes, Target, aggregate_tokens_per_s
from overspill.bench.suite import Bench, Effort, Entry, Outcome
from overspill.bench.throughput import CONTEXT_TOKENS, TOKENS_PER_S, plain_options
from overspill.bench.vocabulary import make_words
from overspill.config import child_environment
from overspill.errors import EngineError

WAVES: Final = 3
"""Requests for each stream: what comes after another one's end is asked for too."""
_ROUNDS: Final = 2


def batch_entry(name: str, shape: str, *, asked: float | None) -> Entry:
    """Tokens a second of `overspill batch`, to those of the engine with as many streams."""
    ratio = FigureSpec(
        f"{name}.vs_engine",
        "ratio",
        f"overspill batch, {shape}, 16 at once, to the same engine's own 16 streams",
        None if asked is None else at_least(asked),
    )

    async def run(bench: Bench) -> Outcome:
        model, effort = await bench.model(shape), bench.effort
        options = plain_options(effort.streams, CONTEXT_TOKENS)
        async with ours.in_process(model, options) as target:

            async def own(number: int) -> float:
                return await _own_tokens_per_s(target, effort, number)

            async def batch(number: int) -> float:
                return await _batch_tokens_per_s(model, effort, number)

            samples = await alternate(
                Side("batch", TOKENS_PER_S, batch, {"requests": WAVES * effort.streams}),
                Side("engine", TOKENS_PER_S, own, {"streams": effort.streams}),
                rounds=min(_ROUNDS, effort.rounds),
                warmups=0,
                settle_s=effort.settle_s,
            )
        mine, theirs = (s.values for s in samples)
        return Outcome({ratio.name: paired_ratio(mine, theirs).value}, samples)

    return Entry(name, (ratio,), run)


async def _own_tokens_per_s(target: Target, effort: Effort, number: int) -> float:
    """Each stream asks again as soon as it is answered."""

    async def one(index: int) -> list[StreamTimes]:
        return [
            await target.stream(effort.prompt_tokens, _answer_tokens(effort), number, index, wave)
            for wave in range(WAVES)
        ]

    streams = await asyncio.gather(*map(one, range(effort.streams)))
    return aggregate_tokens_per_s([times for each in streams for times in each])


def _answer_tokens(effort: Effort) -> int:
    return effort.answer_tokens // 2


async def _batch_tokens_per_s(model: Path, effort: Effort, number: int) -> float:
    """As the command itself tells, from its first request to its last answer."""
    with tempfile.TemporaryDirectory(prefix="ovs") as folder:
        home, asked = Path(folder), Path(folder) / "asked.jsonl"
        (home / "config").mkdir()
        (home / "config" / "config.toml").write_text(
            f'speculation = "off"\nmax_context_tokens = {CONTEXT_TOKENS}\n'
        )
        asked.write_text("\n".join(map(json.dumps, _lines(effort, number))) + "\n")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "overspill.cli.main", "batch", str(asked)),
            *("--out", str(home / "answers.jsonl"), "--model", str(model)),
            *("--slots", str(effort.streams), "--json"),
            env=child_environment({"OVERSPILL_HOME": folder}),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, why = await process.communicate()
    if process.returncode != 0:
        raise EngineError(f"The batch failed: {why.decode('utf-8', 'replace').strip()[-200:]}")
    told = json.loads(said)
    asked_tokens = WAVES * effort.streams * _answer_tokens(effort)
    if told["completion_tokens"] != asked_tokens:
        raise EngineError(
            f"{asked_tokens} tokens were asked for, {told['completion_tokens']} came."
        )
    return float(told["tokens_per_s"])


def _lines(effort: Effort, number: int) -> Iterator[dict[str, Any]]:
    for index in range(WAVES * effort.streams):
        words = make_words(effort.prompt_tokens - _TEMPLATE_TOKENS, (number, index))
        yield {
            "custom_id": f"{index}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "auto",
                "messages": [{"role": "user", "content": words}],
                "max_tokens": _answer_tokens(effort),
            },
        }


_TEMPLATE_TOKENS: Final = 10
"""About what the made models' template adds: prompts of both sides have the same length, nearly."""
