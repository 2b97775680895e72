"""What `overspill bench daemon` measures: what the daemon adds to the same answer in-process.

One model, brook, twice: for a client in this process, and in a daemon of its own behind its Unix
socket. Both answer the same greedy request in turn, each by a worker process, as they do for
everybody; what a client waits for is the text, parsed.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from overspill.bench.batch import batch_entry
from overspill.bench.daemon_process import serving
from overspill.bench.figures import FigureSpec, at_most
from overspill.bench.rounds import Side, alternate
from overspill.bench.sse import KeptConnection, post_events, post_json
from overspill.bench.stats import paired_difference
from overspill.bench.suite import Bench, Entry, Outcome
from overspill.client import AsyncOverspill
from overspill.config import load_settings
from overspill.errors import EngineError

MODEL: Final = "brook"
_PROMPT: Final = "Write a story about a river that wanted to see the sea."
_ANSWER_TOKENS: Final = 64
_REQUESTS: Final = 20
_SETTLE_S: Final = 0.05
_CHAT: Final = "/v1/chat/completions"

TTFT = FigureSpec(
    "daemon.added_ttft_ms",
    "ms",
    "time to the first text over a kept connection of the Unix socket, less the same in-process",
    at_most(1),
)
CONNECTING = FigureSpec(
    "daemon.added_ttft_connecting_ms", "ms", "the same with a connection for each request"
)
TOKEN = FigureSpec(
    "daemon.added_per_token_ms",
    "ms",
    "time from text to text over the Unix socket, less the same in-process",
    at_most(0.3),
)
IMPORT = FigureSpec(
    "sdk.import_ms", "ms", "import overspill, beyond the interpreter's own start", at_most(30)
)
PLAN = FigureSpec("daemon.plan_ms", "ms", "a plan over the Unix socket", at_most(20))


def entries() -> tuple[Entry, ...]:
    """The entries, in the order of the report."""
    return (
        Entry("added", (TTFT, CONNECTING, TOKEN), _added),
        Entry("plan", (PLAN,), _plan),
        Entry("import", (IMPORT,), _import),
        batch_entry("batch.q05", "q05", asked=0.95),
        batch_entry("batch.tiny", "tiny", asked=None),
    )


@dataclass(frozen=True, slots=True)
class _Timed:
    """One answer: seconds to its first text, and from text to text after that."""

    ttft_s: float
    per_token_s: float


async def _added(bench: Bench) -> Outcome:
    requests = max(2, _REQUESTS * bench.effort.short_rounds // 15)
    async with _both() as (ai, socket):
        kept = KeptConnection(socket)
        here = _Side(lambda: _said(ai), requests)
        there = _Side(lambda: _told(kept.post_events), requests)
        anew = _Side(lambda: _told(partial(post_events, socket)), requests)
        detail = {"model": MODEL, "requests": requests}
        samples = await alternate(
            Side("in_process", "s", here.measure, detail),
            Side("daemon", "s", there.measure, detail),
            Side("daemon, connecting", "s", anew.measure, detail),
            rounds=bench.effort.short_rounds,
            settle_s=_SETTLE_S,
        )
        kept.close()
    base = samples[0].values
    per_token_s = statistics.median(there.per_token_s) - statistics.median(here.per_token_s)
    values = {
        TTFT.name: 1e3 * paired_difference(samples[1].values, base),
        CONNECTING.name: 1e3 * paired_difference(samples[2].values, base),
        TOKEN.name: 1e3 * per_token_s,
    }
    return Outcome(values, samples)


async def _plan(bench: Bench) -> Outcome:
    async with _both() as (_, socket):

        async def measure(number: int) -> float:
            began = time.perf_counter()
            await post_json(socket, "/overspill/v1/plan", _body(stream=False))
            return time.perf_counter() - began

        samples = await alternate(
            Side("plan", "s", measure), rounds=bench.effort.short_rounds, settle_s=_SETTLE_S
        )
    return Outcome({PLAN.name: 1e3 * statistics.median(samples[0].values)}, samples)


async def _import(bench: Bench) -> Outcome:
    def starting(name: str, code: str) -> Side:
        async def measure(number: int) -> float:
            began = time.perf_counter()
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
            if await process.wait() != 0:
                raise EngineError(f"'{code}' failed.")
            return time.perf_counter() - began

        return Side(name, "s", measure)

    samples = await alternate(
        starting("import", "import overspill"),
        starting("bare", "pass"),
        rounds=bench.effort.short_rounds,
        settle_s=_SETTLE_S,
    )
    added_s = paired_difference(samples[0].values, samples[1].values)
    return Outcome({IMPORT.name: 1e3 * added_s}, samples)


@dataclass(slots=True)
class _Side:
    """Answers by one way; ``per_token_s`` are the seconds from text to text of each."""

    answer: Callable[[], AsyncGenerator[str]]
    requests: int
    per_token_s: list[float] = field(default_factory=list)

    async def measure(self, number: int) -> float:
        """The median of seconds to the first text."""
        first_s: list[float] = []
        for _ in range(self.requests):
            began = time.perf_counter()
            times = [time.perf_counter() - began async for _ in self.answer()]
            first_s.append(times[0])
            if number >= 0 and len(times) > 1:
                self.per_token_s.append((times[-1] - times[0]) / (len(times) - 1))
        return statistics.median(first_s)


async def _said(ai: AsyncOverspill) -> AsyncGenerator[str]:
    async with aclosing(ai.stream(_PROMPT, max_tokens=_ANSWER_TOKENS)) as chunks:
        async for chunk in chunks:
            if chunk.text:
                yield chunk.text


async def _told(post: Callable[..., AsyncGenerator[dict[str, Any]]]) -> AsyncGenerator[str]:
    async with aclosing(post(_CHAT, _body(stream=True))) as events:
        async for event in events:
            text = event["choices"][0]["delta"].get("content")
            if text:
                yield text


def _body(*, stream: bool) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": _PROMPT}],
        "max_tokens": _ANSWER_TOKENS,
        "stream": stream,
    }


@asynccontextmanager
async def _both() -> AsyncIterator[tuple[AsyncOverspill, Path]]:
    """A client in this process, and the socket of a daemon: each has the model in a worker."""
    with tempfile.TemporaryDirectory(prefix="ovs") as home:
        environ = {"OVERSPILL_HOME": home, "OVERSPILL_MODEL": MODEL}
        settings = load_settings(environ=environ)
        async with (
            AsyncOverspill("bench", settings=settings, daemon="never") as ai,
            serving(environ, Path(home) / "d.sock") as socket,
        ):
            yield ai, socket
