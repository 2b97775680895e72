"""A watched backend changes nothing, but for an answer that it is told to force."""

from contextlib import aclosing

import pytest

from overspill.bench.lookup import _misleading
from overspill.bench.models import made_model
from overspill.bench.ours import serving
from overspill.bench.throughput import plain_options
from overspill.bench.vocabulary import make_words
from overspill.bench.watched import ForcedAnswer, Step, outside_share, watched_engine
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.registry import open_engine
from overspill.errors import EngineError

PROMPT_TOKENS, ANSWER_TOKENS = 128, 40


async def answer(engine, request):
    tokens, usage = [], None
    async with aclosing(engine.generate(request)) as chunks:
        async for chunk in chunks:
            tokens += chunk.token_ids
            usage = chunk.finish.usage if chunk.finish else None
    return tokens, usage


@pytest.mark.anyio
async def test_a_watched_model_says_what_it_says_unwatched(made_models):
    model, options = made_model("mini", made_models), plain_options(2, 256)
    engine, watch = watched_engine(model, options)
    async with serving(engine) as target, serving(open_engine(str(model), options=options)) as bare:
        request = target.request(PROMPT_TOKENS, ANSWER_TOKENS, 1)
        watched, _ = await answer(engine, request)
        assert watched == (await answer(bare.engine, request))[0]
        # The prompt in one step or more, then a step for each further token.
        assert len(watch.backend.steps) >= ANSWER_TOKENS
        assert {len(step.sequences) for step in watch.backend.steps} == {1}


@pytest.mark.anyio
@pytest.mark.parametrize("speculation", ["off", "always"])
async def test_a_forced_answer_is_the_answer_with_and_without_drafts(made_models, speculation):
    options = EngineOptions(
        context_tokens=256,
        max_sequences=1,
        scheduler=SchedulerOptions(speculation=speculation),
    )
    engine, watch = watched_engine(made_model("mini", made_models), options)
    async with serving(engine) as target:
        request = target.request(PROMPT_TOKENS, ANSWER_TOKENS, 2)
        words = request.messages[-1].content.split()[:ANSWER_TOKENS]
        copied = watch.backend.tokenize("".join(f" {word}" for word in words))
        watch.backend.forced = ForcedAnswer(PROMPT_TOKENS, copied)
        tokens, usage = await answer(engine, request)
        assert tokens == copied
        if speculation == "off":
            assert usage.drafted_tokens == 0
        else:
            assert usage.accepted_tokens > ANSWER_TOKENS / 2
            assert len(watch.backend.steps) < ANSWER_TOKENS


@pytest.mark.anyio
async def test_an_answer_of_fresh_words_gives_lookup_nothing(made_models):
    options = EngineOptions(
        context_tokens=256, max_sequences=1, scheduler=SchedulerOptions(speculation="always")
    )
    engine, watch = watched_engine(made_model("mini", made_models), options)
    async with serving(engine) as target:
        request = target.request(PROMPT_TOKENS, ANSWER_TOKENS, 3)
        fresh = watch.backend.tokenize(make_words(ANSWER_TOKENS, (9,)))
        watch.backend.forced = ForcedAnswer(PROMPT_TOKENS, fresh)
        tokens, usage = await answer(engine, request)
        assert tokens == fresh
        assert usage.accepted_tokens == 0


@pytest.mark.anyio
async def test_a_misleading_answer_gives_lookup_many_guesses_and_no_right_one(made_models):
    options = EngineOptions(
        context_tokens=256, max_sequences=1, scheduler=SchedulerOptions(speculation="always")
    )
    engine, watch = watched_engine(made_model("mini", made_models), options)
    async with serving(engine) as target:
        request = target.request(PROMPT_TOKENS, ANSWER_TOKENS, 4)
        misleading = watch.backend.tokenize(_misleading(request, ANSWER_TOKENS, 4))
        watch.backend.forced = ForcedAnswer(PROMPT_TOKENS, misleading)
        tokens, usage = await answer(engine, request)
        assert tokens == misleading
        assert usage.accepted_tokens == 0
        guesses = sum(len(row.tokens) > 1 for row in each_row(watch.backend.steps[1:]))
        assert guesses > ANSWER_TOKENS / 2


def each_row(steps):
    return [row for step in steps for row in step.rows]


def test_what_lies_between_steps_is_outside_the_runtime():
    steps = [Step(0.0, 3.0, None, ()), Step(4.0, 7.0, None, ())]
    assert outside_share(steps) == pytest.approx(1 / 7)
    with pytest.raises(EngineError, match="no two steps"):
        outside_share(steps[:1])
