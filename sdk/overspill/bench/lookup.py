"""Prompt lookup: what it gains where an answer copies its prompt, and costs where it doesn't.

It costs most where it guesses again and again, and wrongly: on a text whose turns of phrase come
back and go on in another way each time. Where nothing comes back it only looks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
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
from overspill.engines.drafts import NGRAM_TOKENS
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
    """One stream with speculation as it decides by itself, against the same without.

    An engine for each kind of text, as what one has learned of the others' would help it; the one
    without stands beside all three, for to it all tokens are the same.
    """

    def figure(kind: str, which: str, asked: float) -> FigureSpec:
        about = f"one stream, {shape}, {which} (forced tokens), to one without lookup"
        return FigureSpec(f"engine.{name}.{kind}_vs_off", RATIO, about, at_least(asked))

    copies = figure("copying", "that copies its prompt", copying)
    wanders = figure("not_copying", "whose tokens stand nowhere before", not_copying)
    misleads = figure(
        "misleading",
        f"whose last {NGRAM_TOKENS} tokens stood before and now go on otherwise",
        not_copying,
    )
    texts = ((copies, _copied), (wanders, _unrelated), (misleads, _misleading))

    async def run(bench: Bench) -> Outcome:
        model = await bench.model(shape)
        off = plain_options(1, PROMPT_TOKENS + bench.effort.answer_tokens + 64)
        auto = replace(off, scheduler=SchedulerOptions(speculation="auto"))
        async with AsyncExitStack() as stack:

            async def side(of: str, options: EngineOptions, answer: Answer) -> Side:
                engine, watch = watched_engine(model, options)
                target = await stack.enter_async_context(serving(engine))
                return _side(of, bench, target, watch.backend, answer)

            sides = [await side(f"{spec.name}: auto", auto, answer) for spec, answer in texts]
            sides.append(await side("off", off, _unrelated))
            *taken, plain = await bench.alternate(*sides)
        return Outcome(
            {
                spec.name: paired_ratio(samples.values, plain.values).value
                for (spec, _), samples in zip(texts, taken, strict=True)
            },
            [*taken, plain],
        )

    return Entry(name, (copies, wanders, misleads), run)


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


def _misleading(request: Request, tokens: int, number: int) -> str:
    """Two of the prompt's words in an order in which the last three have been there before, but
    for the beginning, and are followed by the other word than the last time."""
    one, other = list(dict.fromkeys(request.messages[-1].content.split()))[:2]
    followed: dict[tuple[str, ...], str] = {}
    answer: list[str] = []
    for _ in range(tokens):
        before = tuple(answer[-NGRAM_TOKENS:])
        followed[before] = other if followed.get(before) == one else one
        answer.append(followed[before])
    return "".join(f" {word}" for word in answer)


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
