"""OpenMP's threads of a model that rests are let go where another one computes beside it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from overspill.engines.backend import BatchRow

pytest.importorskip("llama_cpp")
from llama_cpp import llama_cpp as binding

from overspill.engines.llama_cpp import LlamaCppBackend, LlamaCppOptions
from overspill.engines.llama_embedding import LlamaEmbeddingModel, LlamaEmbeddingOptions
from overspill.engines.registry import open_engine

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        sys.platform != "linux" or not hasattr(binding._lib, "omp_pause_resource"),
        reason="llama.cpp runs on GNU's OpenMP on Linux alone",
    ),
]
PROMPT = BatchRow(0, 0, list(range(5, 25)), wants_logits=True)


def threads_of_this_process() -> int:
    return len(os.listdir("/proc/self/task"))


def until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.01)


@contextmanager
def on_a_thread(path: Path) -> Iterator[tuple[ThreadPoolExecutor, LlamaCppBackend]]:
    """A model that a thread of its own computes, with one more to help."""
    options = LlamaCppOptions(context_tokens=64, max_sequences=1, threads=2)
    with ThreadPoolExecutor(1) as thread:
        opened = thread.submit(LlamaCppBackend, path, name="tiny", options=options).result()
        try:
            yield thread, opened
        finally:
            thread.submit(opened.close).result()


def answer(thread: ThreadPoolExecutor, model: LlamaCppBackend) -> np.ndarray:
    def run() -> np.ndarray:
        model.forget(0, 0)
        return np.array(model.run([PROMPT]))

    return thread.submit(run).result()


def test_a_model_alone_keeps_its_threads(tiny_gguf):
    with on_a_thread(tiny_gguf) as (thread, model):
        answer(thread, model)
        before = threads_of_this_process()
        thread.submit(model.rest).result()
        assert threads_of_this_process() == before


def test_beside_another_one_they_are_let_go_and_made_again(tiny_gguf):
    with on_a_thread(tiny_gguf) as (thread, model), on_a_thread(tiny_gguf) as (other, beside):
        before, expected = answer(other, beside), answer(thread, model)
        threads = threads_of_this_process()
        thread.submit(model.rest).result()
        until(lambda: threads_of_this_process() == threads - 1)
        assert np.array_equal(answer(other, beside), before)
        assert np.array_equal(answer(thread, model), expected)
        assert threads_of_this_process() == threads


def test_an_embedder_lets_its_own_go_after_each_batch(tiny_gguf):
    options = LlamaEmbeddingOptions(context_tokens=64, threads=2)
    with on_a_thread(tiny_gguf) as (other, beside), ThreadPoolExecutor(1) as thread:
        answer(other, beside)
        embedder = thread.submit(
            LlamaEmbeddingModel, tiny_gguf, name="tiny", options=options
        ).result()
        before = threads_of_this_process()
        embed = partial(embedder.run, [PROMPT.tokens], "mean", normalize=True)
        assert thread.submit(embed).result() == thread.submit(embed).result()
        until(lambda: threads_of_this_process() == before)
        thread.submit(embedder.close).result()


async def test_an_engine_that_rests_tells_its_model(tiny_gguf, monkeypatch):
    told = threading.Event()
    monkeypatch.setattr(LlamaCppBackend, "rest", lambda _: told.set())
    async with open_engine(str(tiny_gguf)):
        assert await asyncio.to_thread(told.wait, 30)
