"""Sequences that step together: each gives the logits that it gives alone, whoever comes and goes.

Models of every kind of cache take random steps: prompts in chunks, tokens beside others, drafts
that are partly taken back, copies, saved states, sequences that leave. Each row of logits is held
against the same tokens computed at once in an engine that runs nothing else.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from overspill.engines.backend import BatchRow

pytest.importorskip("mlx_lm", reason="pip install 'overspill[mlx]'")

from overspill.engines.mlx_caches import by_length
from overspill.engines.registry import EngineOptions, open_engine
from overspill.errors import InvalidRequest, UnsupportedOption

SEQUENCES = 4
NEAR = 2e-4
"""Of the logits' spread: what rounding in another order makes of F32."""
KINDS = ["llama", "sliding", "gemma3", "deepseek", "gpt2", "mamba2", "falcon_h1"]
TAKE_TURNS = ["llama4", "gpt_bigcode"]
CUT = {"llama", "deepseek", "gpt2", "gpt_bigcode"}


@pytest.fixture(scope="module")
def open_kind(made_mlx, tmp_path_factory, tiny_folder):
    """``open_kind("mamba2")``: a backend over a model of that kind, opened once, emptied."""
    from overspill.engines.mlx import MlxBackend, MlxOptions

    folder, opened = tmp_path_factory.mktemp("kinds"), {}

    def find(kind, reference=False):
        key = kind, reference
        if key not in opened:
            place = folder / kind
            if not place.exists():
                made_mlx.write(kind, place, tiny_folder / "tokenizer.json")
            options = MlxOptions(context_tokens=512, max_sequences=SEQUENCES)
            opened[key] = MlxBackend(place, name=kind, options=options)
        for sequence in range(SEQUENCES):
            opened[key].forget(sequence, 0)
        return opened[key]

    yield find
    for backend in opened.values():
        backend.close()


def _logits_alone(backend, tokens, outputs=1):
    backend.forget(0, 0)
    return backend.run([BatchRow(0, 0, tokens, True, outputs)]).copy()


def _near(found, expected):
    assert np.abs(found - expected).max() <= NEAR * np.abs(expected).max()


FEW_EXAMPLES = settings(
    max_examples=12, stateful_step_count=12, suppress_health_check=list(HealthCheck)
)
CHUNKS = st.lists(st.integers(0, 2047), min_size=1, max_size=40)
FEW = st.lists(st.integers(0, 2047), min_size=1, max_size=4)
WHICH = st.integers(0, SEQUENCES - 1)


class Sequences(RuleBasedStateMachine):
    """What the scheduler does to a backend, in any order."""

    def __init__(self, backend, reference):
        super().__init__()
        self.backend, self.reference = backend, reference
        self.texts = {sequence: [] for sequence in range(SEQUENCES)}
        for sequence in range(SEQUENCES):
            backend.forget(sequence, 0)

    def run(self, parts):
        """``parts``: for each sequence, tokens to append and how many of them give logits."""
        rows = []
        for sequence, (tokens, outputs) in parts.items():
            at = len(self.texts[sequence])
            rows.append(BatchRow(sequence, at, tokens, outputs > 0, max(outputs, 1)))
            self.texts[sequence] = self.texts[sequence] + list(tokens)
        logits = self.backend.run(rows)
        at = 0
        for sequence, (_, outputs) in parts.items():
            if outputs:
                expected = _logits_alone(self.reference, self.texts[sequence], outputs)
                _near(logits[at : at + outputs], expected)
                at += outputs
        assert at == len(logits)

    @rule(parts=st.dictionaries(WHICH, st.tuples(CHUNKS, st.booleans()), min_size=1))
    def compute_prompts(self, parts):
        self.run({s: (tokens, int(ends)) for s, (tokens, ends) in parts.items()})

    @rule(tokens=st.lists(st.integers(0, 2047), min_size=SEQUENCES, max_size=SEQUENCES))
    def everybody_writes(self, tokens):
        self.run({s: ([tokens[s]], 1) for s in self.texts})

    @rule(parts=st.dictionaries(WHICH, st.integers(0, 2047), min_size=2), turns=st.integers(1, 3))
    def some_write(self, parts, turns):
        for _ in range(turns):
            self.run({s: ([token], 1) for s, token in parts.items()})

    @rule(leaving=st.sets(WHICH, min_size=1))
    def leave(self, leaving):
        for sequence in leaving:
            self.backend.forget(sequence, 0)
            self.texts[sequence] = []

    @precondition(lambda self: self.backend.abilities.cuts)
    @rule(drafts=st.dictionaries(WHICH, st.tuples(FEW, st.integers(0, 3)), min_size=1))
    def check_drafts(self, drafts):
        self.run({s: (tokens, len(tokens)) for s, (tokens, _) in drafts.items()})
        for sequence, (tokens, wrong) in drafts.items():
            keep = len(self.texts[sequence]) - min(wrong, len(tokens) - 1)
            self.backend.forget(sequence, keep)
            self.texts[sequence] = self.texts[sequence][:keep]

    @precondition(lambda self: self.backend.abilities.cuts)
    @rule(source=WHICH, goal=WHICH, share=st.floats(0.1, 1))
    def copy(self, source, goal, share):
        tokens = max(1, int(share * len(self.texts[source])))
        if source != goal and self.texts[source]:
            self.backend.copy_prefix(source, goal, tokens)
            self.texts[goal] = self.texts[source][:tokens]

    @rule(source=WHICH, goal=WHICH, token=st.integers(0, 2047))
    def save_and_load(self, source, goal, token):
        if not self.texts[source]:
            return
        state, text = self.backend.save_state(source), self.texts[source]
        assert state.size_bytes > 0
        # What is saved stays as it was, whatever becomes of the sequence.
        self.run({source: ([token], 1)})
        for sequence in {source, goal}:
            self.backend.load_state(sequence, state)
            self.texts[sequence] = text


@pytest.mark.parametrize("kind", KINDS + TAKE_TURNS)
def test_a_sequence_gives_the_same_logits_whoever_steps_beside_it(kind, open_kind):
    backend, reference = open_kind(kind), open_kind(kind, reference=True)
    assert backend.abilities.cuts is (kind in CUT)
    run_state_machine_as_test(
        partial(Sequences, backend, reference),
        settings=FEW_EXAMPLES,
    )


def test_so_it_does_where_every_length_has_a_pass_of_its_own(open_kind, monkeypatch):
    backend, reference = open_kind("llama"), open_kind("llama", reference=True)
    monkeypatch.setattr(backend, "_pass_bytes", 0)
    run_state_machine_as_test(partial(Sequences, backend, reference), settings=FEW_EXAMPLES)


@given(
    lengths=st.dictionaries(st.integers(0, 40), st.integers(0, 5000), min_size=1),
    token=st.integers(0, 9),
    weights=st.integers(0, 20_000),
)
def test_padding_never_takes_more_than_a_pass_and_no_pass_is_needless(lengths, token, weights):
    parts = by_length(lengths, token_bytes=token, pass_bytes=weights)
    assert sorted(member for part in parts for member in part) == sorted(lengths)
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        longest = max(lengths[member] for member in part)
        padding = sum(longest - lengths[member] for member in part) * token
        assert padding <= weights
        if following is not None:
            assert padding + (longest - lengths[following[0]]) * token > weights


@pytest.mark.parametrize("kind", KINDS + TAKE_TURNS)
def test_all_who_write_take_one_pass_where_mlx_lm_can_batch_them(kind, open_kind, monkeypatch):
    backend = open_kind(kind)
    backend.run([BatchRow(s, 0, [5] * (s + 2), True) for s in range(SEQUENCES)])
    passes = []
    call = type(backend._model).__call__
    monkeypatch.setattr(
        type(backend._model),
        "__call__",
        lambda self, inputs, **rest: passes.append(inputs.shape) or call(self, inputs, **rest),
    )
    backend.run([BatchRow(s, s + 2, [7], True) for s in range(SEQUENCES)])
    if kind in TAKE_TURNS:
        assert passes == [(1, 1)] * SEQUENCES
        assert "take turns" in backend.card.notes[-1]
    else:
        assert passes == [(SEQUENCES, 1)]
        assert backend.card.notes == ()


def test_padding_that_drafts_leave_does_not_pile_up(open_kind):
    backend = open_kind("llama")
    lengths = [3, 3]
    backend.run([BatchRow(s, 0, [5, 6, 7], True) for s in range(2)])
    for turn in range(40):
        # One has all its drafts right, the other none; then the other way round.
        rows = [BatchRow(s, lengths[s], [9] * 9, True, 9) for s in range(2)]
        backend.run(rows)
        for s in range(2):
            lengths[s] += 9 if s == turn % 2 else 1
            backend.forget(s, lengths[s])
    (batch,) = backend._caches._batches
    assert batch.caches[0].size() <= max(lengths) + 64 + 9


@pytest.mark.parametrize(("bits", "far"), [(8, 0.05), (4, 0.5)])
def test_quantized_caches_take_less_stay_near_and_take_turns(
    bits, far, made_mlx, tmp_path, tiny_folder
):
    from overspill.engines.mlx import MlxBackend, MlxOptions

    folder = made_mlx.write(
        "llama", tmp_path / "m", tiny_folder / "tokenizer.json", head_dim=64, num_hidden_layers=1
    )
    plain = MlxBackend(folder, name="m")
    small = MlxBackend(folder, name="m", options=MlxOptions(kv_bits=bits))
    tokens = list(range(5, 60))
    logits = [b.run([BatchRow(0, 0, tokens, True)])[0] for b in (plain, small)]
    sizes = [b.save_state(0).size_bytes for b in (plain, small)]
    # Of 32 bits, and a scale and an offset of 32 bits for each 64 values.
    assert sizes[1] == sizes[0] * (bits + 1) // 32
    assert np.abs(logits[1] - logits[0]).max() < far * np.abs(logits[0]).max()
    assert "quantized caches" in small.card.notes[-1]
    reference = MlxBackend(folder, name="m", options=MlxOptions(kv_bits=bits))
    run_state_machine_as_test(partial(Sequences, small, reference), settings=FEW_EXAMPLES)
    for backend in (plain, small, reference):
        backend.close()


@pytest.mark.parametrize("kind", ["sliding", "mamba2", "falcon_h1", "deepseek", "llama4"])
def test_caches_that_mlx_lm_cannot_quantize_are_refused(kind, made_mlx, tmp_path, tiny_folder):
    from overspill.engines.mlx import MlxBackend, MlxOptions

    folder = made_mlx.write(kind, tmp_path / kind, tiny_folder / "tokenizer.json")
    with pytest.raises(UnsupportedOption, match=f"caches of {kind}"):
        MlxBackend(folder, name=kind, options=MlxOptions(kv_bits=8))
    with pytest.raises(InvalidRequest, match="8 or 4"):
        MlxBackend(folder, name=kind, options=MlxOptions(kv_bits=3))


def test_only_mlx_quantizes_its_cache():
    with pytest.raises(UnsupportedOption, match="for MLX") as caught:
        open_engine("echo", options=EngineOptions(kv_bits=8))
    assert caught.value.param == "kv_bits"
