"""Speculation: it never changes an answer, and it stops where it doesn't pay."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.engines.backend import Abilities
from overspill.engines.drafts import Acceptance, DraftModel, PromptLookup, tokenizer_fingerprint
from overspill.engines.echo import EchoBackend, EchoOptions
from overspill.engines.options import EngineOptions, SchedulerOptions
from overspill.engines.scheduled import ScheduledEngine
from overspill.engines.speculation import Speculator, expected_tokens
from overspill.engines.step_costs import StepCosts
from overspill.errors import EngineError, ModelInvalid
from overspill.types.chat import Message, Request, Sampling

# --- prompt lookup ------------------------------------------------------------------------------


def test_what_followed_the_last_tokens_before_is_proposed():
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 8])
    assert lookup.propose([], 4) == ()
    assert lookup.propose([2, 3, 4], 3) == [5, 6, 7]
    # As long as the answer follows, it goes on from there.
    assert lookup.propose([2, 3, 4, 5, 6], 2) == [7, 8]
    assert lookup.propose([2, 3, 4, 5, 6, 9, 9], 2) == ()


def test_the_latest_place_counts_and_a_loop_goes_round():
    lookup = PromptLookup([1, 2, 3, 7, 0, 1, 2, 3, 8, 0])
    assert lookup.propose([1, 2, 3], 1) == [8]
    looping = PromptLookup([0])
    assert looping.propose([5, 6, 5, 6, 5], 5) == [6, 5, 6, 5, 6]
    assert PromptLookup([9, 9, 9, 9]).propose([], 3) == [9, 9, 9]


def test_a_clients_draft_is_followed_from_its_start_and_found_again():
    lookup = PromptLookup([7, 7], draft=[1, 2, 3, 4, 5, 6])
    assert lookup.propose([], 3) == [1, 2, 3]
    assert lookup.propose([1, 2], 2) == [3, 4]
    assert lookup.propose([1, 2, 9], 2) == ()
    assert lookup.propose([1, 2, 9, 3, 4, 5], 2) == [6, 7]


@given(
    st.lists(st.integers(0, 2), max_size=20),
    st.lists(st.integers(0, 2), max_size=30),
    st.integers(1, 6),
)
def test_a_proposal_is_what_a_plain_search_finds(prompt, answer, limit):
    lookup = PromptLookup(prompt)
    for end in range(len(answer) + 1):
        found = lookup.propose(answer[:end], limit)
        text = prompt + answer[:end]
        earlier = {
            text[at] for at in range(3, len(text)) if text[at - 3 : at] == text[-3:] != []
        }  # fmt: skip
        assert (not found) or len(found) == limit
        if found and lookup._cursor == lookup._places.get(tuple(text[-3:])):
            assert found[0] in earlier


# --- when it pays -------------------------------------------------------------------------------


@dataclass(eq=False)
class Sequence:
    """What the speculator needs of a generation."""

    lookup: PromptLookup | None
    prompt: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    max_tokens: int = 10_000
    slot: int = 0
    drafted: int = 0
    accepted: int = 0


COPIED = [*range(100), 0, 1, 2]


def _copying(right=0, wrong=0):
    sequence = Sequence(PromptLookup(COPIED))
    sequence.lookup.acceptance.note(right, right + wrong)
    return sequence


def _speculator(costs, **options):
    return Speculator(SchedulerOptions(**options), costs, clock=lambda: 0.0)


def _costs(measured):
    costs = StepCosts()
    for rows, seconds in measured.items():
        costs.note(rows, 0, seconds)
    return costs


# As measured on two cores: rows of a step against its seconds (shared by rows of one stream).
CPU = {1: 0.0125, 4: 0.0328, 16: 0.0667}
MEMORY_BOUND = {1: 0.010, 4: 0.0105, 16: 0.012}


def test_nothing_is_drafted_before_anything_is_measured():
    assert _speculator(StepCosts()).propose([_copying()], 100) == {}


def test_where_rows_are_free_it_drafts_and_longer_with_better_drafts():
    speculator = _speculator(_costs(MEMORY_BOUND))
    lengths = [
        len(speculator.propose([sequence], 100)[sequence])
        for sequence in (_copying(10, 10), _copying(20, 0))
    ]
    assert lengths[0] < lengths[1] == 15


@pytest.mark.parametrize(("most", "drafted"), [(1, 1), (2, 2), (3, 3), (6, 3), (16, 15)])
def test_drafts_fill_groups_of_rows_unless_fewer_tokens_are_allowed(most, drafted):
    speculator, copying = _speculator(_costs(MEMORY_BOUND), max_draft_tokens=most), _copying(20, 0)
    assert len(speculator.propose([copying], 100)[copying]) == drafted


def test_where_rows_are_dear_only_long_and_right_drafts_pay():
    speculator = _speculator(_costs(CPU))
    for sequence in (_copying(), _copying(10, 10), _copying(0, 20)):
        assert speculator.propose([sequence], 100) == {}
    copying = _copying(20, 0)
    assert len(speculator.propose([copying], 100)[copying]) >= 12


def test_beside_others_a_draft_must_pay_for_all():
    costs = _costs({1: 0.010, 8: 0.020, 9: 0.024, 12: 0.036, 24: 0.084})
    speculator = _speculator(costs)
    alone, crowd = _copying(20, 0), [Sequence(None) for _ in range(7)]
    assert speculator.propose([alone], 100)
    assert speculator.propose([*crowd, alone], 100) == {}


@pytest.mark.parametrize("readers", [1, 3])
def test_a_draft_model_reads_long_prompts_by_parts_that_keep_steps_short(readers, stepped):
    """It takes 0.1 ms a token: half of what the prompt of another may add to a step is 50."""
    clock, draft = stepped.Clock(), EchoBackend()
    run, sizes = draft.run, []

    def timed(rows):
        sizes.append(sum(len(row.tokens) for row in rows))
        clock.now_s += 0.0001 * sizes[-1]
        return run(rows)

    draft.run = timed
    costs = _costs({1: 0.010, 3: 0.010, 60: 0.012})
    speculator = Speculator(SchedulerOptions(), costs, draft_model=DraftModel(draft), clock=clock)
    prompts = [[*b"a long prompt " * 40] for _ in range(readers)]
    asked = [stepped.generation(slot, p, len(p)) for slot, p in enumerate(prompts)]
    steps, drafts = 0, {}
    while len(drafts) < readers and steps < 1000:
        sizes.clear()
        drafts, steps = speculator.propose(asked, 100), steps + 1
        assert drafts or sum(sizes) <= 50
    assert steps > readers * len(prompts[0]) / 64
    assert {len(tokens) for tokens in drafts.values()} == {3}


def test_whether_a_text_copies_shows_without_checking_a_draft():
    """Each lookup hits; while each is wrong none is checked, and no step is lost."""
    speculator = _speculator(_costs(CPU))
    sequence = Sequence(PromptLookup([n for k in range(200) for n in (1, 2, 3, 10 + k)]))
    for n in range(100):
        for token in (1, 2, 3, 1000 + n):
            sequence.tokens.append(token)
            assert speculator.propose([sequence], 100) == {}
    assert sequence.lookup.acceptance.trials > 10
    copying = Sequence(PromptLookup(COPIED))
    for n in range(3, 20):
        copying.tokens = list(range(n))
        if drafts := speculator.propose([copying], 100):
            break
    assert drafts[copying][:2] == [n, n + 1]


def test_costs_measured_in_a_bad_moment_are_measured_again():
    costs = _costs({**MEMORY_BOUND, 4: 1.0, 16: 5.0})
    speculator, sequence = _speculator(costs), _copying(20, 0)
    asked = 0
    while not speculator.propose([sequence], 100):
        asked += 1
    assert 100 < asked < 1000


def test_drafts_stay_within_room_and_answer():
    speculator = _speculator(_costs(MEMORY_BOUND), speculation="always")
    short = replace(_copying(), max_tokens=4)
    other = _copying()
    drafts = speculator.propose([short, other], 8)
    # Three, and the model's own fourth.
    assert {len(drafts[short]), len(drafts[other])} == {3, 5}
    assert speculator.propose([replace(_copying(), max_tokens=1)], 8) == {}


@given(st.floats(0, 1), st.integers(0, 20))
def test_expected_tokens_lie_between_one_and_all(rate, length):
    assert 1.0 <= expected_tokens(rate, length) <= length + 1.0 + 1e-9


def test_acceptance_is_a_mean_that_forgets():
    acceptance = Acceptance(prior=0.4, prior_trials=4.0, memory=0.98)
    assert acceptance.rate == pytest.approx(0.4)
    for _ in range(50):
        acceptance.note(4, 4)
    assert acceptance.rate > 0.9
    for _ in range(500):
        acceptance.note(0, 0)
    assert acceptance.rate == pytest.approx(0.4, abs=0.1)


# --- the same answers ---------------------------------------------------------------------------

RUNTIMES = ["echo", "llama.cpp", "mlx"]
REPETITIVE = "The cat sat on the mat. The cat sat on the mat. The cat sat on the"
SAMPLINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=0.8, seed=11),
    "filtered": Sampling(temperature=1.5, top_k=40, top_p=0.9, min_p=0.02, seed=5),
    "penalised": Sampling(temperature=0.5, seed=3, repeat_penalty=1.3, frequency_penalty=0.2),
}


def _always(**options):
    return SchedulerOptions(speculation="always", max_draft_tokens=5, **options)


OFF = SchedulerOptions(speculation="off")


async def _answers(engine, kit, requests):
    answers = await asyncio.gather(*(kit.collect(engine, request) for request in requests))
    return [
        (
            kit.tokens_of(chunks),
            kit.text_of(chunks),
            chunks[-1].finish.reason,
            [(p.token_id, p.logprob) for chunk in chunks for p in chunk.logprobs],
        )
        for chunks in answers
    ], [chunks[-1].finish.usage for chunks in answers]


def _same(one, other):
    assert [answer[:3] for answer in one] == [answer[:3] for answer in other]
    for (*_, ours), (*_, theirs) in zip(one, other, strict=True):
        assert [token for token, _ in ours] == [token for token, _ in theirs]
        assert [p for _, p in ours] == pytest.approx([p for _, p in theirs], abs=2e-3)


def _requests(kit):
    return [
        kit.ask(
            REPETITIVE,
            id=name,
            sampling=sampling,
            max_tokens=40,
            top_logprobs=2 if name == "greedy" else None,
        )
        for name, sampling in SAMPLINGS.items()
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_answers_are_the_same_with_and_without_drafts(runtime, open_kind, kit):
    requests = _requests(kit)
    async with open_kind(runtime, exact_attention=True, scheduler=OFF) as engine:
        plain, usages = await _answers(engine, kit, requests)
        assert all(usage.drafted_tokens == 0 for usage in usages)
    # Drafts that are right at first, and wrong later.
    requests = [
        replace(request, draft=text[: len(text) // 2] + REPETITIVE)
        for request, (_, text, *_) in zip(requests, plain, strict=True)
    ]
    async with open_kind(runtime, exact_attention=True, scheduler=_always()) as engine:
        drafted, usages = await _answers(engine, kit, requests)
        _same(drafted, plain)
        assert sum(usage.accepted_tokens for usage in usages) > 0
        health = await engine.health()
        assert health.drafted_tokens == sum(usage.drafted_tokens for usage in usages)
        assert health.accepted_tokens == sum(usage.accepted_tokens for usage in usages)
        alone = [(await _answers(engine, kit, [request]))[0][0] for request in requests]
        _same(alone, plain)


@pytest.mark.anyio
@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_draft_model_changes_nothing_and_is_right_where_it_is_the_model(
    runtime, open_kind, kit, tiny_gguf, tiny_folder
):
    spec = {"echo": "echo", "llama.cpp": str(tiny_gguf), "mlx": str(tiny_folder)}[runtime]
    options = {"exact_attention": True, "draft_model": spec}
    requests = [
        kit.ask(f"Of river number {n}", id=str(n), max_tokens=24, sampling=sampling)
        for n, sampling in enumerate(SAMPLINGS.values())
    ]
    async with open_kind(runtime, exact_attention=True, scheduler=OFF) as engine:
        plain, _ = await _answers(engine, kit, requests)
    async with open_kind(runtime, scheduler=_always(), **options) as engine:
        drafted, _ = await _answers(engine, kit, requests)
        _same(drafted, plain)
        answers, (usage,) = await _answers(engine, kit, requests[:1])
        _same(answers, plain[:1])
        assert usage.accepted_tokens >= usage.drafted_tokens * 0.8 > 0


@pytest.mark.anyio
async def test_a_draft_that_is_right_is_a_few_steps_and_one_that_is_wrong_costs_none(kit):
    backend = EchoBackend()
    steps = []
    run = backend.run
    backend.run = lambda rows: steps.append([len(row.tokens) for row in rows]) or run(rows)
    text = "abcdefghijklmnopqrstuvwxyz" * 2
    request = kit.ask(text, max_tokens=200)
    async with _echo(backend, _always()) as engine:
        for draft, most in (("echo: " + text, 15), ("something else", 60)):
            steps.clear()
            chunks = await kit.collect(engine, replace(request, id=draft, draft=draft))
            assert kit.text_of(chunks) == "echo: " + text
            assert len(steps) <= most


def _echo(backend, scheduler, draft=None):
    return ScheduledEngine(
        lambda: backend,
        name="echo",
        runtime="echo",
        options=EngineOptions(scheduler=scheduler),
        open_draft=None if draft is None else lambda: draft,
    )


@pytest.mark.anyio
async def test_stops_and_limits_hold_in_the_middle_of_a_draft(kit):
    text = "one two three four"
    draft = "echo: " + text
    async with _echo(EchoBackend(), _always()) as engine:
        stopped = await kit.collect(engine, kit.ask(text, stop=("o th",), draft=draft))
        assert kit.text_of(stopped) == "echo: one tw"
        assert stopped[-1].finish.reason == "stop"
        for limit in range(1, 12):
            cut = await kit.collect(engine, kit.ask(text, max_tokens=limit, draft=draft))
            assert kit.text_of(cut) == draft[:limit]
            assert cut[-1].finish.reason == "length"
        assert engine.status().kv_tokens_reserved == 0


@pytest.mark.anyio
async def test_a_draft_leaves_a_cache_that_can_be_reused(kit):
    text = "one two three four"
    first = kit.ask(text, max_tokens=9, draft="echo: one two, and wrong from here", cache_scope="s")
    async with _echo(EchoBackend(), _always()) as engine:
        await kit.collect(engine, first)
        talk = (*first.messages, Message("assistant", "echo: one"), Message("user", "five"))
        again = replace(first, id="2", messages=talk, draft="", max_tokens=20)
        chunks = await kit.collect(engine, again)
        assert kit.text_of(chunks) == "echo: five"
        assert chunks[-1].finish.usage.cached_tokens >= 30


class Broken(EchoBackend):
    """A draft model that fails after a while."""

    def run(self, rows):
        if rows[0].position > 10:
            raise EngineError("broken")
        return super().run(rows)


@pytest.mark.anyio
async def test_a_draft_model_that_breaks_costs_its_drafts_and_no_answer(kit):
    async with _echo(EchoBackend(), _always(), Broken()) as engine:
        chunks = await kit.collect(engine, kit.ask("a long way to go for this one", max_tokens=80))
        assert kit.text_of(chunks) == "echo: a long way to go for this one"
        health = await engine.health()
        assert health.ok
        assert health.notes == ("The draft model failed and was left out: broken",)


class Uncut(EchoBackend):
    """As a recurrent model is."""

    abilities = Abilities()


@pytest.mark.anyio
async def test_a_draft_model_that_has_no_use_is_told(kit):
    async with _echo(Uncut(), _always(), EchoBackend()) as engine:
        assert kit.text_of(await kit.collect(engine, kit.ask("x"))) == "echo: x"
        notes = (await engine.health()).notes
    assert notes == ("The draft model is not used: the model's cache cannot be cut.",)


class OtherTokens(EchoBackend):
    def token_bytes(self, token):
        return bytes([255 - token]) if token < 256 else b""


def test_a_draft_model_of_another_tokenizer_is_refused():
    DraftModel(EchoBackend()).check_same_tokenizer(EchoBackend())
    with pytest.raises(ModelInvalid, match="tokenizer"):
        DraftModel(OtherTokens()).check_same_tokenizer(EchoBackend())


def test_a_fingerprint_is_of_the_tokens():
    own = tokenizer_fingerprint(EchoBackend())
    assert own == tokenizer_fingerprint(EchoBackend())
    assert own != tokenizer_fingerprint(OtherTokens())


@pytest.mark.anyio
async def test_a_draft_by_a_model_of_another_tokenizer_is_dropped(kit):
    request = replace(kit.ask("say it again"), draft="echo: say it again")
    async with _echo(EchoBackend(), _always()) as engine:
        _, [plain] = await _answers(engine, kit, [replace(request, draft="")])
        own = engine.card.tokenizer
        checked = [
            (await _answers(engine, kit, [replace(request, draft_tokenizer=name)]))[1][0]
            for name in ("", own, tokenizer_fingerprint(OtherTokens()))
        ]
    accepted = [usage.accepted_tokens for usage in checked]
    assert accepted[0] == accepted[1] > plain.accepted_tokens == accepted[2]


@pytest.mark.anyio
async def test_an_engine_with_a_wrong_draft_model_does_not_start(kit):
    engine = _echo(EchoBackend(), _always(), OtherTokens())
    with pytest.raises(ModelInvalid, match="tokenizer"):
        await engine.start()


@pytest.mark.anyio
async def test_a_draft_models_context_may_be_shorter(kit):
    short = EchoBackend(EchoOptions(context_tokens=64))
    async with _echo(EchoBackend(), _always(), short) as engine:
        chunks = await kit.collect(engine, kit.ask("w" * 30, max_tokens=80))
        assert kit.text_of(chunks) == "echo: " + "w" * 30


def test_requests_carry_a_draft():
    assert Request((Message("user", "x"),)).draft == ""


@pytest.mark.anyio
async def test_drafts_are_checked_beside_a_prompt_that_is_computed(stepped, kit):
    backend = stepped.SteppedEcho()
    async with stepped.engine_of(backend, speculation="always", max_draft_tokens=4) as engine:
        said = "echo: " + "x" * 60
        copying = stepped.ask(60, max_tokens=66, draft=said)
        decoder = asyncio.create_task(kit.collect(engine, copying))
        backend.allow(1)
        await stepped.until(lambda: len(backend.steps) == 1)
        long = asyncio.create_task(kit.collect(engine, stepped.ask(1000, max_tokens=9)))
        await stepped.until(lambda: engine.status().queued + engine.status().active == 2)
        backend.allow()
        answers = await asyncio.gather(decoder, long)
    assert [kit.text_of(chunks) for chunks in answers] == [said, "echo: xxx"]
    sizes = [sorted(size for _, _, size in step) for step in backend.steps]
    assert [5, stepped.CHUNK] in sizes
