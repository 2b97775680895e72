"""Prompt lookup: what it gains where an answer copies its prompt, and costs where it doesn't."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from overspill.bench.figures import FigureSpec, at_least
from overspill.bench.ours import OurTarget, serving
from overspill.bench.rounds import Side
from overspill.bench.stats import paired_ratio
from overspill.bench.streams import time_stream
from overspill.bench.suite import Bench, Entry, Outcome
from overspill.bench.throughput import RATIO, TOKENS_PER_S, plain_options
from overspill.bench.vocabulary import make_words
from overspill.bench.watched import ForcedAnswer, WatchedBackend, watched_engine
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.registry import open_engine
from overspill.errors import ConfigurationError, EngineError
from overspill.types.chat import Message, Request
from overspill.types.usage import Usage

PROMPT_TOKENS = 256
EXTRACTION_PROMPTS = 20
_UNRELATED_SEED = 1

Answer = Callable[[Request, int, int], str]
"""The text that is forced as the answer to a request: of so many tokens, in this round."""


def lookup(name: str, shape: str, *, copying: float, not_copying: float) -> Entry:
    """One stream with speculation as it decides by itself, against the same without."""
    copies = FigureSpec(
        f"engine.{name}.copying_vs_off",
        RATIO,
        f"one stream, {shape}, that copies its prompt (forced tokens), to itself without lookup",
        at_least(copying),
    )
    wanders = FigureSpec(
        f"engine.{name}.not_copying_vs_off",
        RATIO,
        f"one stream, {shape}, whose tokens stand nowhere before, to itself without lookup",
        at_least(not_copying),
    )

    async def run(bench: Bench) -> Outcome:
        model = await bench.model(shape)
        off = plain_options(1, PROMPT_TOKENS + bench.effort.answer_tokens + 64)
        auto = replace(off, scheduler=SchedulerOptions(speculation="auto"))
        values, samples = {}, []
        for figure, answer in ((copies, _copied), (wanders, _unrelated)):
            with_lookup, without = watched_engine(model, auto), watched_engine(model, off)
            async with serving(with_lookup[0]) as mine, serving(without[0]) as plain:
                taken = await bench.alternate(
                    _side(f"{figure.name}: auto", bench, mine, with_lookup[1].backend, answer),
                    _side(f"{figure.name}: off", bench, plain, without[1].backend, answer),
                )
            values[figure.name] = paired_ratio(taken[0].values, taken[1].values).value
            samples += taken
        return Outcome(values, samples)

    return Entry(name, (copies, wanders), run)


def _side(
    name: str, bench: Bench, target: OurTarget, backend: WatchedBackend, answer: Answer
) -> Side:
    async def measure(number: int) -> float:
        tokens = bench.effort.answer_tokens
        request = target.request(PROMPT_TOKENS, tokens, number)
        forced = backend.tokenize(answer(request, tokens, number))
        backend.forced = ForcedAnswer(PROMPT_TOKENS, forced)
        backend.steps.clear()
        async with aclosing(target.engine.generate(request)) as chunks:
            return (await time_stream(chunks, tokens)).decode_tokens_per_s

    return Side(name, TOKENS_PER_S, measure)


def _copied(request: Request, tokens: int, number: int) -> str:
    """The first words of the prompt."""
    words = request.messages[-1].content.split()
    return "".join(f" {word}" for word in words[:tokens])


def _unrelated(request: Request, tokens: int, number: int) -> str:
    """Words that are neither the prompt's nor ordered as any before."""
    return make_words(tokens, (_UNRELATED_SEED, number, tokens))


# --- a trained model ----------------------------------------------------------------------------


def river_acceptance(name: str) -> Entry:
    """How often prompt lookup is right for a trained model that extracts fields from a text."""
    accepted = FigureSpec(
        f"engine.{name}.acceptance", "share", "drafted tokens that river accepts on extraction"
    )
    share = FigureSpec(
        f"engine.{name}.copied_share", "share", "of river's answers, tokens that came from drafts"
    )

    async def run(bench: Bench) -> Outcome:
        model, prompts = _river_and_prompts(bench.family)
        options = EngineOptions(max_sequences=1, scheduler=SchedulerOptions(speculation="always"))
        usages = []
        async with open_engine(str(model), options=options) as engine:
            for prompt in prompts:
                request = Request((Message("user", prompt),), max_tokens=128)
                async with aclosing(engine.generate(request)) as chunks:
                    usages += [c.finish.usage async for c in chunks if c.finish is not None]
        return _acceptance(usages, accepted, share)

    return Entry(name, (accepted, share), run)


def _acceptance(usages: list[Usage], accepted: FigureSpec, share: FigureSpec) -> Outcome:
    drafted = sum(usage.drafted_tokens for usage in usages)
    right = sum(usage.accepted_tokens for usage in usages)
    written = sum(usage.completion_tokens for usage in usages)
    if not drafted or not written:
        raise EngineError("River's answers gave no drafts.")
    return Outcome({accepted.name: right / drafted, share.name: right / written})


def _river_and_prompts(family: Path | None) -> tuple[Path, list[str]]:
    model = None if family is None else family / "models" / "river-q8_0.gguf"
    if family is None or model is None or not model.is_file():
        raise ConfigurationError(
            "The family's larger model is not here.",
            mend="Run in a checkout, or give --family examples/family.",
        )
    lines = (family / "eval_prompts.jsonl").read_text("utf-8").splitlines()
    cases = (json.loads(line) for line in lines)
    chosen = [case["messages"][-1]["content"] for case in cases if case["skill"] == "extraction"]
    return model, chosen[:EXTRACTION_PROMPTS]
