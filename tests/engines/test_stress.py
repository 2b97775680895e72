"""Joins, reads, leaves and cancels at random over real models: each answer is what it is alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from overspill.engines.options import SchedulerOptions
from overspill.types.chat import new_request_id

SEQUENCES = 3
PATIENCE_S = 60.0
OPTIONS = SchedulerOptions(
    prefill_chunk_tokens=16, speculation="always", max_draft_tokens=4, prefix_cache_bytes=1 << 18
)
PROMPTS = [
    "one",
    "one two three one two three one two",
    "a long question that takes some steps to read, " * 3,
    "a long question that takes some steps to read, and another end",
]


class Bench:
    """One engine and the answers that it gives when nobody else asks."""

    def __init__(self, engine, kit):
        self.loop, self.engine, self.kit = asyncio.new_event_loop(), engine, kit
        self.requests = [kit.ask(prompt, max_tokens=n) for prompt in PROMPTS for n in (1, 24)]
        self.run(engine.start())
        self.alone = [self.run(kit.collect(engine, request)) for request in self.requests]

    def run(self, awaitable):
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, PATIENCE_S))

    def close(self):
        self.run(self.engine.aclose())
        self.loop.close()


def machine_over(bench):
    """The state machine; its engine outlives each example, as an app's does."""

    class Streams(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.streams = []

        @rule(
            which=st.integers(0, len(bench.requests) - 1),
            scope=st.sampled_from([None, "talk"]),
            draft=st.sampled_from(["", "one two three"]),
            at_once=st.booleans(),
        )
        def join(self, which, scope, draft, at_once):
            request = replace(
                bench.requests[which], id=new_request_id(), cache_scope=scope, draft=draft
            )
            stream = bench.engine.generate(request)
            begun = asyncio.ensure_future(anext(stream), loop=bench.loop)
            if at_once:
                bench.run(_leave(begun, stream))
            else:
                self.streams.append((stream, bench.alone[which], [bench.run(begun)]))

        @precondition(lambda self: self.streams)
        @rule(data=st.data())
        def read(self, data):
            stream, _, chunks = data.draw(st.sampled_from(self.streams))
            if chunks[-1].finish is None:
                chunks.append(bench.run(anext(stream)))

        @precondition(lambda self: self.streams)
        @rule(data=st.data())
        def leave(self, data):
            stream, alone, chunks = self.streams.pop(
                data.draw(st.integers(0, len(self.streams) - 1))
            )
            bench.run(stream.aclose())
            tokens = bench.kit.tokens_of(chunks)
            assert bench.kit.tokens_of(alone)[: len(tokens)] == tokens

        def teardown(self):
            for stream, alone, chunks in self.streams:
                while chunks[-1].finish is None:
                    chunks.append(bench.run(anext(stream)))
                bench.run(stream.aclose())
                assert bench.kit.tokens_of(chunks) == bench.kit.tokens_of(alone)
                assert chunks[-1].finish.reason is alone[-1].finish.reason
            assert bench.run(bench.kit.is_idle(bench.engine))

    return Streams


async def _leave(begun, stream):
    """Leave while it is prepared, queued, or about to begin."""
    await asyncio.wait({begun}, timeout=0.001)
    begun.cancel()
    await asyncio.wait({begun})
    await stream.aclose()


@pytest.mark.parametrize("kind", ["llama.cpp", "mlx", "worker-llama.cpp"])
def test_whoever_comes_and_goes_nobody_elses_answer_changes(kind, open_kind, kit):
    engine = open_kind(kind, exact_attention=True, max_sequences=SEQUENCES, scheduler=OPTIONS)
    bench = Bench(engine, kit)
    try:
        run_state_machine_as_test(
            machine_over(bench),
            settings=settings(max_examples=15, stateful_step_count=20, deadline=None),
        )
    finally:
        bench.close()
