"""What a backend owes the scheduler, asked of the backends themselves."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from overspill.engines.backend import BatchRow, Interrupted
from overspill.engines.registry import EngineOptions, open_engine

TEXT = "Once upon a time there was a fox"
KINDS = ["echo", "llama.cpp", "mlx"]


@pytest.fixture(scope="module", params=KINDS)
def backend(request, tiny_gguf, tiny_folder):
    if request.param == "echo":
        from overspill.engines.echo import EchoBackend

        opened = EchoBackend()
    elif request.param == "llama.cpp":
        pytest.importorskip("llama_cpp")
        from overspill.engines.llama_cpp import LlamaCppBackend, LlamaCppOptions

        opened = LlamaCppBackend(tiny_gguf, name="tiny", options=LlamaCppOptions(threads=1))
    else:
        pytest.importorskip("mlx_lm")
        from overspill.engines.mlx import MlxBackend

        opened = MlxBackend(tiny_folder, name="tiny")
    yield opened
    opened.close()
    opened.close()


@pytest.fixture
def tokens(backend):
    """A text's tokens; the backend is empty before and after."""
    yield backend.tokenize(TEXT)
    for sequence in range(backend.max_sequences):
        backend.forget(sequence, 0)


def _last(backend, sequence, position, tokens):
    return backend.run([BatchRow(sequence, position, tokens, wants_logits=True)])[0].copy()


def test_logits_are_one_row_for_each_that_wants_them(backend, tokens):
    rows = [
        BatchRow(0, 0, tokens, wants_logits=False),
        BatchRow(1, 0, tokens, wants_logits=True),
        BatchRow(2, 0, tokens[:3], wants_logits=True),
    ]
    logits = backend.run(rows)
    assert logits.shape == (2, backend.vocabulary.size)
    assert logits.dtype == np.float32
    none = backend.run([BatchRow(3, 0, tokens, wants_logits=False)])
    assert none.shape == (0, backend.vocabulary.size)


def test_chunks_give_what_the_whole_gives(backend, tokens):
    whole = _last(backend, 0, 0, tokens)
    backend.run([BatchRow(1, 0, tokens[:4], wants_logits=False)])
    rest = _last(backend, 1, 4, tokens[4:])
    assert rest == pytest.approx(whole, abs=2e-2)


def test_sequences_do_not_influence_each_other(backend, tokens):
    alone = _last(backend, 0, 0, tokens)
    beside = backend.run(
        [
            BatchRow(1, 0, tokens[::-1], wants_logits=True),
            BatchRow(2, 0, tokens, wants_logits=True),
        ]
    )
    assert beside[1] == pytest.approx(alone, abs=2e-2)


def test_what_was_forgotten_can_be_written_anew(backend, tokens):
    whole = _last(backend, 0, 0, tokens)
    backend.forget(0, 5)
    backend.run([BatchRow(0, 5, tokens[:2], wants_logits=False)])
    backend.forget(0, 5)
    assert _last(backend, 0, 5, tokens[5:]) == pytest.approx(whole, abs=2e-2)


def test_a_copied_prefix_goes_on_by_itself(backend, tokens):
    whole = _last(backend, 0, 0, tokens)
    backend.run([BatchRow(1, 0, tokens[:2], wants_logits=False)])
    backend.copy_prefix(0, 1, 6)
    assert _last(backend, 1, 6, tokens[6:]) == pytest.approx(whole, abs=2e-2)
    # The source is as it was.
    following = _last(backend, 0, len(tokens), tokens[:1])
    assert _last(backend, 1, len(tokens), tokens[:1]) == pytest.approx(following, abs=2e-2)


def test_a_saved_state_can_be_loaded_into_any_sequence_and_twice(backend, tokens):
    whole = _last(backend, 0, 0, tokens)
    state = backend.save_state(0)
    assert state.size_bytes > 0
    backend.forget(0, 0)
    backend.run([BatchRow(2, 0, tokens[::-1], wants_logits=False)])
    for sequence in (1, 2):
        backend.load_state(sequence, state)
        backend.forget(sequence, 6)
        assert _last(backend, sequence, 6, tokens[6:]) == pytest.approx(whole, abs=2e-2)


def test_logits_of_several_tokens_in_a_row_are_those_of_each(backend, tokens):
    several = backend.run(
        [
            BatchRow(0, 0, tokens, wants_logits=True, outputs=3),
            BatchRow(1, 0, tokens[:4], wants_logits=False),
            BatchRow(2, 0, tokens[:5], wants_logits=True, outputs=2),
        ]
    ).copy()
    assert several.shape == (5, backend.vocabulary.size)
    n = len(tokens)
    for row, end in zip(several, (n - 2, n - 1, n, 4, 5), strict=True):
        backend.forget(3, 0)
        assert _last(backend, 3, 0, tokens[:end]) == pytest.approx(row, abs=2e-2)


def test_an_interrupt_holds_for_the_next_run_until_it_is_taken_back(backend, tokens):
    backend.interrupt()
    with pytest.raises(Interrupted):
        _last(backend, 0, 0, tokens)
    backend.forget(0, 0)
    backend.rearm()
    assert _last(backend, 0, 0, tokens).shape == (backend.vocabulary.size,)


def test_facts_fit_together(backend):
    assert backend.card.context == backend.context_per_sequence
    assert backend.kv_tokens <= backend.context_per_sequence * backend.max_sequences
    assert backend.batch_tokens >= backend.max_sequences
    backend.set_threads(1)


@pytest.mark.anyio
async def test_prompts_that_are_abandoned_leave_nothing_in_the_cache(brook_gguf, kit):
    pytest.importorskip("llama_cpp")
    long = kit.ask("hello world " * 150, max_tokens=100)
    short = kit.ask("What is 2 + 3?", max_tokens=24)
    options = EngineOptions(max_sequences=2, threads=1)
    async with open_engine(str(brook_gguf), options=options) as engine:
        expected = kit.tokens_of(await kit.collect(engine, short))
        for i in range(10):
            leaving = asyncio.create_task(kit.collect(engine, long))
            await asyncio.sleep(0.004 * i)
            leaving.cancel()
            await asyncio.wait({leaving})
            assert kit.tokens_of(await kit.collect(engine, short)) == expected
