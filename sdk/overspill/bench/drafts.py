"""A client's draft: what it gains where the model would have said its first part too, and what it
costs where the model says something else from the first token on."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import replace

from overspill.bench.figures import FigureSpec, at_most
from overspill.bench.ours import OurTarget, serving
from overspill.bench.rounds import Side
from overspill.bench.stats import paired_ratio
from overspill.bench.suite import Bench, Entry, Outcome
from overspill.bench.throughput import RATIO, plain_options
from overspill.bench.vocabulary import make_words
from overspill.bench.watched import ForcedAnswer, WatchedBackend, watched_engine
from overspill.engines.options import SchedulerOptions
from overspill.types.chat import Request

PROMPT_TOKENS = 64
DRAFT_TOKENS = 64
MATCHING_TOKENS = 38
_SAID, _GUESSED = 2, 3
"""Seeds: of the answer, and of the draft where it differs."""


def client_draft(name: str, shape: str, *, matching: float, missing: float) -> Entry:
    """The time to ``DRAFT_TOKENS`` tokens with a draft of as many, against the same without."""
    begins = FigureSpec(
        f"engine.{name}.first_{MATCHING_TOKENS}_match",
        RATIO,
        f"{shape}: time to {DRAFT_TOKENS} tokens (forced) with a draft whose first "
        f"{MATCHING_TOKENS} are right, to that without a draft",
        at_most(matching),
    )
    differs = FigureSpec(
        f"engine.{name}.none_match",
        RATIO,
        f"{shape}: the same with a draft that is wrong from its first token on",
        at_most(missing),
    )

    async def run(bench: Bench) -> Outcome:
        model = await bench.model(shape)
        off = plain_options(1, PROMPT_TOKENS + DRAFT_TOKENS + 64)
        auto = replace(off, scheduler=SchedulerOptions(speculation="auto"))
        values, samples = {}, []
        for figure, right in ((begins, MATCHING_TOKENS), (differs, 0)):
            checks, plain = watched_engine(model, auto), watched_engine(model, off)
            async with serving(checks[0]) as mine, serving(plain[0]) as other:
                taken = await bench.alternate(
                    _side(f"{figure.name}: draft", mine, checks[1].backend, right),
                    _side(f"{figure.name}: none", other, plain[1].backend, None),
                )
            values[figure.name] = paired_ratio(taken[0].values, taken[1].values).value
            samples += taken
        return Outcome(values, samples)

    return Entry(name, (begins, differs), run)


def _side(name: str, target: OurTarget, backend: WatchedBackend, right: int | None) -> Side:
    """``right`` tokens of the draft are the answer's; None sends none."""

    async def measure(number: int) -> float:
        request = target.request(PROMPT_TOKENS, DRAFT_TOKENS, number)
        said = make_words(DRAFT_TOKENS, (_SAID, number)).split()
        backend.forced = ForcedAnswer(PROMPT_TOKENS, backend.tokenize(_text(said)))
        if right is not None:
            guessed = make_words(DRAFT_TOKENS - right, (_GUESSED, number)).split()
            request = replace(request, draft=_text([*said[:right], *guessed]))
        return await _time_to_end(target, request)

    return Side(name, "s", measure)


async def _time_to_end(target: OurTarget, request: Request) -> float:
    started_s = time.perf_counter()
    async with aclosing(target.engine.generate(request)) as chunks:
        async for _ in chunks:
            pass
    return time.perf_counter() - started_s


def _text(words: list[str]) -> str:
    return "".join(f" {word}" for word in words)
