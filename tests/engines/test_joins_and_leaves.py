"""Joins, leaves and cancels in any order, over echo."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.scheduled import ScheduledEngine
from overspill.types.chat import Message, Request


async def _until(condition):
    """Wait for another thread; a test that waits in vain ends by pytest's own timeout."""
    while not condition():  # noqa: ASYNC110 - the other side is a thread
        await asyncio.sleep(0.002)


class JoinsAndLeaves(RuleBasedStateMachine):
    """Streams over echo in any order: each gets its own text, and nothing stays reserved."""

    @initialize(
        sequences=st.integers(1, 3),
        batch_tokens=st.integers(3, 60),
        options=st.builds(
            SchedulerOptions,
            prefill_chunk_tokens=st.integers(1, 40),
            prefix_cache_bytes=st.sampled_from([0, 500, 1 << 20]),
            speculation=st.sampled_from(["auto", "always", "off"]),
            max_draft_tokens=st.integers(1, 8),
            max_adapters=st.integers(1, 3),
        ),
    )
    def begin(self, sequences, batch_tokens, options):
        self.loop = asyncio.new_event_loop()
        self.backend = EchoBackend(
            EchoOptions(
                context_tokens=300,
                max_sequences=sequences,
                batch_tokens=batch_tokens,
                adapters=("a", "b"),
            )
        )
        self.engine = ScheduledEngine(
            lambda: self.backend,
            name="echo",
            runtime="echo",
            options=EngineOptions(scheduler=options),
        )
        self.streams = []
        self.options = options
        self._run(self.engine.start())

    def _run(self, awaitable):
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, 30))

    @rule(
        text=st.text("abc ", min_size=1, max_size=80),
        options=st.fixed_dictionaries(
            {
                "max_tokens": st.integers(1, 60),
                "lane": st.sampled_from(["interactive", "batch"]),
                "app": st.sampled_from(["one", "other"]),
                "cache_scope": st.sampled_from([None, "talk"]),
                "adapter": st.sampled_from([None, "a", "b"]),
                "draft": st.sampled_from(["", "echo: abc abc abc", "<|im_end|>"]),
            }
        ),
        at_once=st.booleans(),
    )
    def join(self, text, options, at_once):
        request = Request((Message("user", text),), **options)
        stream = self.engine.generate(request)
        name = f"echo[{request.adapter}]: " if request.adapter else "echo: "
        if at_once:
            self._leave_at_once(stream)
            return
        # Started, so that it is in the queue; what it has said by now is kept.
        chunk = self._run(anext(stream))
        self.streams.append((stream, (name + text)[: request.max_tokens], [chunk]))

    def _leave_at_once(self, stream):
        """Leave while it is prepared, queued, or about to begin."""

        async def begin_and_leave():
            begun = asyncio.ensure_future(anext(stream))
            await asyncio.wait({begun}, timeout=0.001)
            begun.cancel()
            await asyncio.wait({begun})
            await stream.aclose()

        self._run(begin_and_leave())

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def read(self, data):
        stream, _, chunks = data.draw(st.sampled_from(self.streams))
        if chunks[-1].finish is None:
            chunks.append(self._run(anext(stream)))

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def leave(self, data):
        which = data.draw(st.integers(0, len(self.streams) - 1))
        stream, expected, chunks = self.streams.pop(which)
        self._run(stream.aclose())
        assert expected.startswith("".join(chunk.text for chunk in chunks))

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        for stream, expected, chunks in self.streams:
            while chunks[-1].finish is None:
                chunks.append(self._run(anext(stream)))
            assert "".join(chunk.text for chunk in chunks) == expected
            self._run(stream.aclose())
        self._run(_until(lambda: self.engine.status().active == 0))
        status = self.engine.status()
        assert (status.queued, status.kv_tokens_reserved) == (0, 0)
        slots = self.engine._scheduler._kv.free_slots
        assert sorted(slots) == list(range(self.backend.max_sequences))
        assert status.prefix_cache_bytes <= self.options.prefix_cache_bytes
        self._run(self.engine.aclose())
        self.loop.close()


TestJoinsAndLeaves = JoinsAndLeaves.TestCase
TestJoinsAndLeaves.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
