"""MLX's estimate before loading, against the bytes that a full context and its steps then take.

Models of several architectures are loaded by a process of their own, which fills all sequences,
steps them together and computes a last prompt beside them; mlx says what that took at most.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("mlx_lm", reason="pip install 'overspill[mlx]'")

from overspill.engines import mlx_model
from overspill.engines.mlx_memory import CacheCost, MlxUse, mlx_need
from overspill.engines.registry import EngineOptions, open_engine
from overspill.errors import DoesNotFit

_LOAD_AND_FILL = """
import json, sys
from pathlib import Path
import mlx.core as mx
from overspill.engines.backend import BatchRow
from overspill.engines.mlx import MlxBackend, MlxOptions

tokens, sequences = int(sys.argv[2]), int(sys.argv[3])
backend = MlxBackend(
    Path(sys.argv[1]),
    name="made",
    options=MlxOptions(context_tokens=tokens, max_sequences=sequences),
)
filled = tokens - 8

def fill(sequence):
    for at in range(0, filled, 256):
        end = min(at + 256, filled)
        backend.run([BatchRow(sequence, at, [5] * (end - at), False)])

fill(0)
state = backend.save_state(0)
for sequence in range(1, sequences - 1):
    backend.load_state(sequence, state)
del state
for step in range(4):
    backend.run([BatchRow(s, filled + step, [5], True) for s in range(sequences - 1)])
fill(sequences - 1)
ends = [BatchRow(s, filled + 4, [5], True) for s in range(sequences - 1)]
backend.run([*ends, BatchRow(sequences - 1, filled, [5], True)])
print(json.dumps({"taken": mx.get_peak_memory(), "estimate": backend.card.memory_bytes}))
"""

WIDE = {"hidden_size": 256, "max_position_embeddings": 2048}
SHAPES = {
    # Many heads, all of them in the cache: it is most of what is taken.
    "llama": {**WIDE, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32,
              "num_hidden_layers": 6, "intermediate_size": 768},
    # Windows in two of three layers, which keep 128 tokens.
    "gemma3": {**WIDE, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
               "num_hidden_layers": 6, "intermediate_size": 1024, "sliding_window": 128},
    # A state of fixed size in each layer, whatever the context.
    "mamba2": {"hidden_size": 256, "num_heads": 8, "head_dim": 64, "intermediate_size": 512,
               "state_size": 64, "num_hidden_layers": 6, "max_position_embeddings": 2048},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "tokens", "sequences"), [("llama", 1024, 6), ("gemma3", 1024, 4), ("mamba2", 512, 8)]
)
def test_the_estimate_is_within_a_tenth_of_what_is_taken(
    kind, tokens, sequences, made_mlx, tmp_path, tiny_folder
):
    folder = made_mlx.write(
        kind, tmp_path / kind, tiny_folder / "tokenizer.json", vocab_size=16_000, **SHAPES[kind]
    )
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_AND_FILL, str(folder), str(tokens), str(sequences)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["estimate"] == pytest.approx(told["taken"], rel=0.10)


def _need(*costs, tokens=1000, sequences=2, config=None):
    return mlx_need(5000, costs, config or {}, 100, MlxUse(tokens, sequences))


def test_a_window_keeps_no_more_than_it_sees_and_a_state_does_not_grow():
    assert _need(CacheCost(token_bytes=8)).kv_bytes == 2 * 8 * (1000 + 256)
    assert _need(CacheCost(token_bytes=8, window_tokens=64)).kv_bytes == 2 * 8 * (64 + 256)
    assert _need(CacheCost(state_bytes=70)).kv_bytes == 2 * 70
    assert _need(CacheCost(token_bytes=8), CacheCost(state_bytes=70), sequences=1).kv_bytes == (
        8 * (1000 + 256) + 70
    )


def test_what_steps_work_in_grows_with_heads_and_context():
    cost = CacheCost(token_bytes=64, value_bytes=4)
    few, many = (_need(cost, config={"num_attention_heads": n}) for n in (2, 4))
    assert many.compute_bytes == 2 * few.compute_bytes == 256 * 2 * 4 * (1000 + 256) * 4
    assert _need(cost, config={"num_attention_heads": 2}, tokens=4000).compute_bytes > (
        3 * few.compute_bytes
    )


def test_a_model_says_what_its_caches_take_before_any_weight_is_read(
    made_mlx, tmp_path, tiny_folder
):
    import mlx.core as mx

    costs = {}
    for kind in ("llama", "sliding", "falcon_h1"):
        folder = made_mlx.write(kind, tmp_path / kind, tiny_folder / "tokenizer.json")
        before = mx.get_active_memory()
        outline = mlx_model.FolderModel(folder).outline
        # A few scalars; the weights are a thousand times that.
        assert mx.get_active_memory() - before < outline.weights_bytes // 100
        assert outline.vocabulary_size == made_mlx.VOCABULARY
        assert outline.weights_bytes == pytest.approx(
            (folder / "model.safetensors").stat().st_size, rel=0.05
        )
        costs[kind] = outline.cache_costs
    # Two heads of 16, keys and values, F32.
    assert costs["llama"] == (CacheCost(2 * 2 * 16 * 4),) * 2
    assert [cost.window_tokens for cost in costs["sliding"]] == [24, None]
    assert [bool(cost.state_bytes) for cost in costs["falcon_h1"]] == [True, False] * 2


@pytest.mark.anyio
async def test_a_context_is_made_smaller_where_that_is_allowed(
    made_mlx, tmp_path, tiny_folder, monkeypatch
):
    folder = made_mlx.write(
        "llama", tmp_path / "m", tiny_folder / "tokenizer.json", max_position_embeddings=4096
    )
    options = EngineOptions(max_sequences=8, shrink_context=True)
    async with open_engine(str(folder), options=options) as engine:
        whole = engine.card.memory_bytes
        assert (engine.card.context, engine.card.notes) == (4096, ())
    # The machine's memory is no object of ours: a number stands for it.
    monkeypatch.setattr(mlx_model, "available_memory", lambda: whole * 7 // 10)
    with pytest.raises(DoesNotFit, match="8 sequences of 4096 tokens"):
        await open_engine(str(folder), options=EngineOptions(max_sequences=8)).start()
    async with open_engine(str(folder), options=options) as engine:
        assert engine.card.context < 4096
        assert engine.card.memory_bytes < whole
        assert "instead of 4096" in engine.card.notes[0]
