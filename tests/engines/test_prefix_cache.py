"""Prefix reuse: nothing is computed twice that is there, and nothing is shared that must not be."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.backend import Abilities, BatchRow, SavedState
from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.prefix_cache import HostStore, Prefix, PrefixCache, common_prefix
from overspill.engines.scheduled import ScheduledEngine
from overspill.errors import DeadlineExceeded, EngineError
from overspill.types.chat import Message, Request

KEY = ("app", "scope", None)
tokens = st.lists(st.integers(0, 3), max_size=30)


@given(tokens, tokens)
def test_a_common_prefix_is_as_long_as_it_is(one, other):
    expected = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    assert common_prefix(one, other) == expected
    assert common_prefix(tuple(one), other) == expected


# --- the host's store ---------------------------------------------------------------------------


@given(st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 9))))
def test_the_store_stays_under_its_cap_and_finds_the_longest(entries):
    store = HostStore(20)
    for ids, size in entries:
        store.put(Prefix(KEY, tuple(ids)), SavedState(ids, size))
        assert store.used_bytes <= 20
    held = [(len(p.tokens), s.size_bytes) for p, s in store._states.items()]
    assert store.used_bytes == sum(size for _, size in held)
    assert store.best(("other", "scope", None), [0, 1]) == (None, 0)


def test_the_least_recently_used_state_goes_first_and_a_longer_one_replaces_a_shorter():
    store = HostStore(3)
    first, second, third = (Prefix(KEY, (n, n)) for n in range(3))
    for prefix in (first, second, third):
        store.put(prefix, SavedState(None, 1))
    store.take(first)
    store.put(Prefix(KEY, (7, 7)), SavedState(None, 1))
    assert store.best(KEY, [1, 1])[1] == 0
    assert store.best(KEY, [0, 0]) == (first, 2)
    store.put(Prefix(KEY, (0, 0, 0)), SavedState(None, 1))
    assert len(store) == 3
    assert store.covers(Prefix(KEY, (0, 0)))
    store.put(Prefix(KEY, (9,)), SavedState(None, 4))
    assert len(store) == 3


# --- slots --------------------------------------------------------------------------------------


@dataclass
class Newcomer:
    prompt: list[int]
    prefix_key: tuple | None = KEY
    slot: int = -1
    computed: int = 0
    ended: bool = False


@dataclass
class Held:
    """A cache over echo, and what each slot must hold."""

    backend: EchoBackend
    cache: PrefixCache
    free: list[int] = field(default_factory=lambda: [0, 1, 2])

    def run(self, prompt, key=KEY, *, running=(), stay=False):
        newcomer = Newcomer(list(prompt), key)
        newcomer.slot, newcomer.computed = self.cache.place(newcomer, self.free, running)
        reused = newcomer.computed
        held = self.backend._cache[newcomer.slot].tokens
        assert held == newcomer.prompt[:reused]
        self.free.remove(newcomer.slot)
        row = BatchRow(newcomer.slot, reused, newcomer.prompt[reused:], wants_logits=True)
        self.backend.run([row])
        newcomer.computed = len(newcomer.prompt)
        if stay:
            return newcomer, reused
        self.leave(newcomer)
        return reused

    def leave(self, newcomer):
        self.free.append(newcomer.slot)
        self.cache.keep(newcomer.slot, newcomer.prefix_key, newcomer.prompt)


def _held(backend=None, max_bytes=1 << 20):
    backend = backend or EchoBackend(EchoOptions(max_sequences=3))
    return Held(backend, PrefixCache(backend, max_bytes=max_bytes))


def _talk(number, size=100):
    return [number] * 2 + [ord("x")] * size


def test_a_prompt_goes_on_from_where_one_like_it_ended():
    held = _held()
    assert held.run(_talk(1)) == 0
    assert held.run(_talk(1, 150)) == 102
    # The last token is always computed: its logits choose the answer's first.
    assert held.run(_talk(1, 150)) == 151


def test_apps_scopes_and_adapters_share_nothing_and_without_a_key_nobody_does():
    held = _held()
    held.run(_talk(1))
    for key in (("other", "scope", None), ("app", "other", None), ("app", "scope", "lora"), None):
        assert held.run(_talk(1), key) == 0
    held.run(_talk(1), None)
    assert held.run(_talk(1), None) == 0


def test_what_no_slot_has_room_for_comes_back_from_the_host():
    held = _held()
    for number in range(5):
        held.run(_talk(number))
    assert held.cache.host_bytes > 0
    for number in range(5):
        assert held.run(_talk(number)) == 101


def test_without_host_memory_what_was_left_first_is_lost_first():
    held = _held(max_bytes=0)
    for number in range(4):
        held.run(_talk(number))
    assert held.cache.host_bytes == 0
    assert [held.run(_talk(number)) for number in (3, 2, 1)] == [101] * 3
    assert held.run(_talk(0)) == 0


def test_a_branch_of_a_conversation_does_not_cost_the_other_branch():
    for max_bytes in (0, 1 << 20):
        held = _held(max_bytes=max_bytes)
        trunk = [5] * 100
        held.run(trunk + [1] * 100)
        assert held.run(trunk + [2] * 100) == 100
        assert held.run(trunk + [1] * 100) == 199


def test_a_running_sequence_lends_its_prefix():
    held = _held()
    running, _ = held.run(_talk(1), stay=True)
    assert held.run(_talk(1, 200), running=[running]) == 102
    stranger = replace(running, prefix_key=("other", "scope", None))
    assert _held().run(_talk(1, 200), running=[stranger]) == 0


def test_free_slots_give_way_where_the_cache_is_short_of_tokens():
    held = _held()
    for number in range(3):
        held.run(_talk(number))
    held.cache.shrink(150)
    assert sum(bool(c.tokens) for c in held.backend._cache) == 1


class Fragile(EchoBackend):
    """Echo whose copies fail."""

    def copy_prefix(self, source, target, tokens):
        super().copy_prefix(source, target, tokens // 2)
        raise EngineError("no copy")

    def load_state(self, sequence, state):
        self._cache[sequence].append([1, 2, 3])
        raise EngineError("no loading")


def test_a_reuse_that_fails_costs_the_reuse_only():
    held = _held(Fragile(EchoOptions(max_sequences=3)))
    for number in range(4):
        held.run(_talk(number))
    assert held.run(_talk(0)) == 0
    running, _ = held.run(_talk(7), stay=True)
    assert held.run(_talk(7), running=[running]) == 0


def test_who_follows_one_that_left_inherits_from_wherever_it_is():
    trunk = [5] * 100
    for whereabouts in ("free slot", "with another", "host"):
        held = _held()
        held.run([*trunk, 1])
        others = []
        if whereabouts == "with another":
            others = [held.run(trunk + [2] * 50, stay=True)[0]]
        elif whereabouts == "host":
            for number in range(3):
                held.run(_talk(number + 6))
        follower = Newcomer(trunk + [3] * 10)
        follower.slot, follower.computed = held.free.pop(0), 0
        held.cache._resident.pop(follower.slot, None)
        held.backend.forget(follower.slot, 0)
        assert held.cache.inherit(follower, [follower, *others]) == 100
        assert held.backend._cache[follower.slot].tokens == trunk
        stranger = replace(follower, prefix_key=None)
        assert held.cache.inherit(stranger, [follower]) == 0


class Uncuttable(EchoBackend):
    @property
    def abilities(self):
        return Abilities()


def test_a_cache_that_cannot_be_cut_is_not_reused():
    held = _held(Uncuttable(EchoOptions(max_sequences=3)))
    held.run(_talk(1))
    assert held.run(_talk(1, 150)) == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 200), st.booleans()), max_size=12))
def test_whatever_is_reused_is_the_prompts_own(talks):
    held = _held(max_bytes=2000)
    for number, size, private in talks:
        held.run(_talk(number, size), None if private else KEY)
    assert sorted(held.free) == [0, 1, 2]


# --- in the engine ------------------------------------------------------------------------------


def _engine(backend, **options):
    return ScheduledEngine(
        lambda: backend,
        name="echo",
        runtime="echo",
        options=EngineOptions(scheduler=SchedulerOptions(**options)),
    )


def _ask(text, **options):
    return Request((Message("user", text),), max_tokens=20, **options)


async def _finish(engine, request):
    chunks = [chunk async for chunk in engine.generate(request)]
    return "".join(chunk.text for chunk in chunks), chunks[-1].finish.usage


@pytest.mark.anyio
async def test_usage_says_how_much_of_the_prompt_was_there():
    async with _engine(EchoBackend()) as engine:
        first = _ask("once upon a time", cache_scope="talk")
        assert (await _finish(engine, first))[1].cached_tokens == 0
        text, usage = await _finish(engine, replace(first, id="again"))
        assert text == "echo: once upon a time"[:20]
        assert usage.cached_tokens == usage.prompt_tokens - 1
        for stranger in (
            replace(first, app="other"),
            replace(first, cache_scope="other"),
            replace(first, cache_scope=None),
        ):
            assert (await _finish(engine, stranger))[1].cached_tokens == 0


@pytest.mark.anyio
@pytest.mark.parametrize("size", [20, 1])
async def test_a_shared_beginning_is_computed_once_by_all_who_come_together(size):
    backend = EchoBackend()
    computed = []
    run = backend.run

    def counted(rows):
        computed.extend(len(row.tokens) for row in rows if len(row.tokens) > 1)
        return run(rows)

    backend.run = counted
    system = Message("system", "be brief " * 100)
    asked = [
        Request((system, Message("user", f"question {i}")), max_tokens=size, cache_scope="talk")
        for i in range(6)
    ]
    async with _engine(backend, prefill_chunk_tokens=64) as engine:
        answers = await asyncio.gather(*(_finish(engine, request) for request in asked))
    assert [text for text, _ in answers] == [f"echo: question {i}"[:size] for i in range(6)]
    prompt = answers[0][1].prompt_tokens
    # Six times without it. Who comes when little is left computes that himself.
    assert sum(computed) < 2 * prompt
    assert sum(usage.cached_tokens > 700 for _, usage in answers) == 5


@pytest.mark.anyio
async def test_whose_leader_leaves_computes_his_prompt_himself():
    backend = EchoBackend(EchoOptions(token_delay_s=0.002))
    async with _engine(backend, prefill_chunk_tokens=16) as engine:
        text = "so it begins " * 60
        leading = asyncio.create_task(_finish(engine, _ask(text + "a", cache_scope="talk")))
        await asyncio.sleep(0.01)
        following = asyncio.create_task(_finish(engine, _ask(text + "b", cache_scope="talk")))
        await asyncio.sleep(0.01)
        leading.cancel()
        assert (await following)[0] == ("echo: " + text)[:20]


@pytest.mark.anyio
async def test_a_prompt_that_is_there_meets_a_deadline_that_it_would_miss():
    now_s = 0.0
    backend = EchoBackend()
    run = backend.run

    def a_second_for_a_hundred_tokens(rows):
        nonlocal now_s
        now_s += sum(len(row.tokens) for row in rows) / 100
        return run(rows)

    backend.run = a_second_for_a_hundred_tokens
    engine = ScheduledEngine(lambda: backend, name="echo", runtime="echo", clock=lambda: now_s)
    async with engine:
        long = _ask("x" * 1000, cache_scope="talk")
        await _finish(engine, long)
        in_time = replace(long, id="again", first_token_s=1.0)
        assert (await _finish(engine, in_time))[1].cached_tokens > 1000
        with pytest.raises(DeadlineExceeded, match="at least"):
            await _finish(engine, replace(in_time, cache_scope=None))
