"""MLX under the scheduler: no answer depends on who else is served; memory is given back."""

from __future__ import annotations

import asyncio
import gc
import random

import pytest

from overspill.engines.backend import BatchRow, SavedState
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.registry import open_engine
from overspill.errors import EngineError
from overspill.types.chat import Sampling

pytest.importorskip("mlx_lm", reason="pip install 'overspill[mlx]'")

PROMPTS = [
    "Hello!",
    "What is 12 + 30?",
    "Tell me a story about a fox, a river and a very long way home through the snow.",
    "Sort: 3 1 2",
    "Repeat this: the quick brown fox, the quick brown fox, the quick brown fox.",
    "Extract the city: Anna lives in Paris and works in Lyon.",
]


def _requests(kit, count):
    """Greedy and drawn, short and long, some with log-probs."""
    return [
        kit.ask(
            PROMPTS[n % len(PROMPTS)],
            id=f"r{n}",
            max_tokens=12 + 5 * (n % 5),
            sampling=Sampling(temperature=0.9, seed=n) if n % 3 == 2 else Sampling(temperature=0),
            cache_scope="s" if n % 2 else None,
        )
        for n in range(count)
    ]


async def _alone(brook_f32, kit, requests):
    options = EngineOptions(max_sequences=1, scheduler=SchedulerOptions(speculation="off"))
    async with open_engine(str(brook_f32), options=options) as engine:
        return [kit.tokens_of(await kit.collect(engine, request)) for request in requests]


@pytest.mark.anyio
@pytest.mark.parametrize("speculation", ["off", "always"])
@pytest.mark.parametrize("sequences", [2, 8])
async def test_answers_are_the_same_in_batches_of_any_size(brook_f32, kit, speculation, sequences):
    requests = _requests(kit, 12)
    expected = await _alone(brook_f32, kit, requests)
    options = EngineOptions(
        max_sequences=sequences, scheduler=SchedulerOptions(speculation=speculation)
    )
    async with open_engine(str(brook_f32), options=options) as engine:
        answers = await asyncio.gather(*(kit.collect(engine, request) for request in requests))
        drafted = sum(chunks[-1].finish.usage.drafted_tokens for chunks in answers)
    assert [kit.tokens_of(chunks) for chunks in answers] == expected
    assert (drafted > 0) is (speculation == "always")


@pytest.mark.anyio
async def test_who_comes_and_leaves_changes_nobody_elses_answer(brook_f32, kit):
    rng = random.Random(5)
    requests = _requests(kit, 24)
    expected = await _alone(brook_f32, kit, requests)

    async def leave(engine, request):
        stream = engine.generate(request)
        for _ in range(rng.randrange(4)):
            await anext(stream, None)
        await stream.aclose()

    async def stay(engine, request):
        await asyncio.sleep(rng.random() / 5)
        return kit.tokens_of(await kit.collect(engine, request))

    async with open_engine(str(brook_f32), options=EngineOptions(max_sequences=5)) as engine:
        leaving = set(rng.sample(range(24), 10))
        answers = await asyncio.gather(
            *((leave if n in leaving else stay)(engine, r) for n, r in enumerate(requests))
        )
        assert await kit.is_idle(engine)
    for n in set(range(24)) - leaving:
        assert answers[n] == expected[n], n


@pytest.fixture
def backend(tiny_folder):
    from overspill.engines.mlx import MlxBackend

    opened = MlxBackend(tiny_folder, name="tiny")
    yield opened
    opened.close()


def test_a_closed_model_gives_its_memory_back(backend):
    import mlx.core as mx

    backend.run([BatchRow(s, 0, [5, 6, 7], True) for s in range(4)])
    held = mx.get_active_memory()
    backend.close()
    gc.collect()
    assert held - mx.get_active_memory() > 0.9 * backend.card.size_bytes


def test_rows_that_do_not_follow_on_and_foreign_states_are_errors(backend):
    backend.run([BatchRow(0, 0, [5, 6], True)])
    with pytest.raises(EngineError, match="holds 2 tokens"):
        backend.run([BatchRow(0, 5, [5], True)])
    with pytest.raises(EngineError, match="no state of its own"):
        backend.load_state(1, SavedState(b"", 0))


def test_what_the_runtime_raises_is_one_line_and_leaves_the_others(backend, monkeypatch):
    backend.run([BatchRow(s, 0, [5, 6], True) for s in range(3)])
    whole = backend.run([BatchRow(s, 2, [7], True) for s in range(3)])
    for sequence in range(3):
        backend.forget(sequence, 2)

    def broken(self, inputs, **rest):
        raise RuntimeError("[malloc] Unable to allocate\n 10 bytes")

    with monkeypatch.context() as broken_model:
        broken_model.setattr(type(backend._model), "__call__", broken)
        with pytest.raises(EngineError, match=r"Unable to allocate 10 bytes\.$"):
            backend.run([BatchRow(s, 2, [7], True) for s in range(2)])
    for sequence in range(2):
        backend.forget(sequence, 0)
    again = backend.run([BatchRow(2, 2, [7], True)])
    assert again[0] == pytest.approx(whole[2], abs=1e-4)
