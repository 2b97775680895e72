"""The estimate before loading, against the bytes that loading and a full context then take.

Files of several architectures are written with random weights, loaded by a process of its own, and
that process's memory is read before and after: its own pages, and those of the mapped file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from overspill.engines.gguf_fit import GgufFitOptions, gguf_fit
from overspill.engines.gguf_header import GgufHeader, TensorInfo, read_header
from overspill.engines.gguf_memory import LlamaUse, cpu_features, fuses_attention, gguf_need
from overspill.engines.options import SchedulerOptions
from overspill.engines.registry import EngineOptions, open_engine
from overspill.errors import DoesNotFit

pytest.importorskip("llama_cpp", reason="pip install 'overspill[llama]'")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="memory by kind: Linux only")

_LOAD_AND_FILL = """
import json, sys
from pathlib import Path
from overspill.engines import llama_cpp
from overspill.engines.backend import BatchRow

def resident():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return sum(int(lines[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))

path, options = Path(sys.argv[1]), json.loads(sys.argv[2])
llama_cpp.native.llama_backend_init()
before = resident()
backend = llama_cpp.LlamaCppBackend(
    path, name="made", options=llama_cpp.LlamaCppOptions(threads=1, **options)
)
tokens, batch, sequences = options["context_tokens"], 512, options["max_sequences"]
# A step that all sequences run in, alike, so that it is one; then one of them is filled, its last
# step a whole one.
share = batch // sequences
outputs = 1 + options.get("draft_tokens", 0)
backend.run([BatchRow(n, 0, [5] * share, True, outputs) for n in range(sequences)])
at = share
while at < tokens:
    size = (tokens - at) % batch or batch
    backend.run([BatchRow(0, at, [5] * size, True)])
    at += size
print(json.dumps({"taken": resident() - before, "estimate": backend.card.memory_bytes}))
"""

_LOAD_AND_EMBED = """
import json, sys
from pathlib import Path
from overspill.engines import llama_embedding

def resident():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return sum(int(lines[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))

path, tokens = Path(sys.argv[1]), int(sys.argv[2])
llama_embedding.native.llama_backend_init()
before = resident()
model = llama_embedding.LlamaEmbeddingModel(
    path,
    name="made",
    options=llama_embedding.LlamaEmbeddingOptions(context_tokens=tokens, threads=1),
)
model.run([[5] * tokens], "mean", normalize=True)
print(json.dumps({"taken": resident() - before, "estimate": model.card.memory_bytes}))
"""

MODELS = {
    # Qwen2.5-0.5B's layers, Q4_0 repacked, under a smaller vocabulary.
    "qwen2-q4_0": {
        "architecture": "qwen2", "width": 896, "layers": 4, "heads": 14, "kv_heads": 2,
        "feed_forward": 4864, "vocabulary": 32000, "weights": "Q4_0", "embedding": "Q8_0",
    },
    # Llama-3.2-1B's layers: grouped heads, Q4_K.
    "llama-q4_k": {
        "width": 2048, "layers": 2, "heads": 32, "kv_heads": 8, "feed_forward": 8192,
        "vocabulary": 16000, "weights": "Q4_K", "embedding": "Q6_K",
    },
    # Karpathy's stories15M: small, where the cache is most of it.
    "llama-q8_0": {
        "width": 288, "layers": 6, "heads": 6, "kv_heads": 6, "feed_forward": 768,
        "vocabulary": 32000, "weights": "Q8_0", "embedding": "Q8_0",
    },
    # Gemma 3's layers: a sliding window in five of six, heads wider than the model.
    "gemma3-q8_0": {
        "architecture": "gemma3", "width": 640, "layers": 6, "heads": 4, "kv_heads": 1,
        "head_width": 256, "feed_forward": 2048, "vocabulary": 32000, "weights": "Q8_0",
        "embedding": "Q8_0", "extra": {"attention.sliding_window": 512},
    },
    # Mamba: no attention, a state of fixed size.
    "mamba-q8_0": {
        "architecture": "mamba", "width": 768, "layers": 6, "heads": 0, "kv_heads": 0,
        "feed_forward": 0, "vocabulary": 32000, "weights": "Q8_0", "embedding": "Q8_0",
        "extra": {"ssm.conv_kernel": 4, "ssm.inner_size": 1536, "ssm.state_size": 16,
                  "ssm.time_step_rank": 32},
    },
    # bge-small's layers: no cache, no gate in its feed-forward layers.
    "bert-f32": {
        "architecture": "bert", "width": 384, "layers": 6, "heads": 12, "kv_heads": 12,
        "feed_forward": 1536, "vocabulary": 30000, "context": 512,
        "extra": {"attention.causal": False, "pooling_type": 1},
    },
}  # fmt: skip

CASES = [
    ("qwen2-q4_0", {"context_tokens": 1024, "max_sequences": 4}),
    ("qwen2-q4_0", {"context_tokens": 1024, "max_sequences": 1, "exact_attention": True}),
    # Long enough for attention in separate operations, where that is faster.
    ("qwen2-q4_0", {"context_tokens": 3072, "max_sequences": 1}),
    ("llama-q4_k", {"context_tokens": 512, "max_sequences": 2}),
    ("llama-q8_0", {"context_tokens": 1024, "max_sequences": 8}),
    ("gemma3-q8_0", {"context_tokens": 1024, "max_sequences": 2}),
    ("mamba-q8_0", {"context_tokens": 512, "max_sequences": 4}),
    # Each draft's tokens take a row of the vocabulary's size each: here as much as the weights.
    ("llama-q8_0", {"context_tokens": 512, "max_sequences": 8, "draft_tokens": 16}),
]


@pytest.fixture(scope="module")
def model_file(made_gguf, tmp_path_factory):
    """``model_file("qwen2-q4_0")``: that model, written once."""
    folder = tmp_path_factory.mktemp("models")

    def find(name):
        path = folder / f"{name}.gguf"
        return path if path.exists() else made_gguf.write(path, made_gguf.Shape(**MODELS[name]))

    return find


@linux_only
@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_estimate_is_within_a_tenth_of_what_is_taken(model_file, name, options):
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_AND_FILL, str(model_file(name)), json.dumps(options)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["estimate"] == pytest.approx(told["taken"], rel=0.10)


def _write_adapter(path, *, width, hidden, layers, rank):
    """A LoRA adapter of the feed-forward layers, as convert_lora_to_gguf.py writes it."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    for layer in range(layers):
        for name, into, out in (("up", width, hidden), ("gate", width, hidden)):
            tensor = f"blk.{layer}.ffn_{name}.weight"
            writer.add_tensor(f"{tensor}.lora_a", np.zeros((rank, into), np.float32))
            writer.add_tensor(f"{tensor}.lora_b", np.zeros((out, rank), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@linux_only
def test_adapters_are_counted(model_file, tmp_path):
    shape = MODELS["qwen2-q4_0"]
    files = {name: str(tmp_path / f"{name}.gguf") for name in ("one", "two")}
    for path in files.values():
        _write_adapter(
            path, width=shape["width"], hidden=shape["feed_forward"], layers=shape["layers"],
            rank=128,
        )  # fmt: skip
    options = {"context_tokens": 1024, "max_sequences": 1, "adapters": files}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_AND_FILL, str(model_file("qwen2-q4_0")), json.dumps(options)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["estimate"] == pytest.approx(told["taken"], rel=0.10)


@pytest.mark.anyio
async def test_the_card_counts_the_draft_model_too(model_file):
    spec = str(model_file("llama-q8_0"))
    options = EngineOptions(context_tokens=512, max_sequences=1)
    plain = replace(options, scheduler=SchedulerOptions(speculation="off"))
    async with open_engine(spec, options=plain) as engine:
        alone = engine.card.memory_bytes
    async with open_engine(spec, options=options) as engine:
        checking = engine.card.memory_bytes
    # A row of logits for each token of a draft, in the step and in what comes out of it.
    vocabulary = MODELS["llama-q8_0"]["vocabulary"]
    assert checking - alone >= SchedulerOptions().max_draft_tokens * vocabulary * 4
    async with open_engine(spec, options=replace(options, draft_model=spec)) as engine:
        assert engine.card.memory_bytes == checking + alone > 0


@linux_only
@pytest.mark.parametrize(("name", "tokens"), [("bert-f32", 512), ("qwen2-q4_0", 512)])
def test_so_is_that_of_an_embedding_model(model_file, name, tokens):
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_AND_EMBED, str(model_file(name)), str(tokens)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["estimate"] == pytest.approx(told["taken"], rel=0.10)


def _use(**options):
    plain = LlamaUse(context_tokens=1000, max_sequences=2, batch_tokens=512)
    return replace(plain, **options)


def _need(path, **options):
    return gguf_need(path, read_header(path), _use(**options))


def test_only_what_this_cpu_repacks_is_counted_twice(model_file):
    path = model_file("qwen2-q4_0")
    plain, packed = (
        _need(path, cpu_features=frozenset(names)) for names in ((), ("AVX2", "REPACK"))
    )
    # Four layers of 896 x 896, twice 128 x 896, 896 x 896 and three of 896 x 4864, 18 bytes for 32.
    matrices = 4 * (2 * 896 * 896 + 2 * 128 * 896 + 3 * 896 * 4864) // 32 * 18
    assert (plain.repacked_bytes, plain.reclaimable_bytes) == (0, 0)
    assert packed.repacked_bytes == matrices
    assert 0 < packed.reclaimable_bytes <= matrices
    assert packed.least_bytes < packed.total_bytes
    # Q8_0 has no faster layout on x86; on ARM it has.
    small = model_file("llama-q8_0")
    assert not _need(small, cpu_features=frozenset({"AVX2", "REPACK"})).repacked_bytes
    assert _need(small, cpu_features=frozenset({"NEON", "DOTPROD", "REPACK"})).repacked_bytes


@pytest.mark.parametrize(
    ("context_tokens", "batch_tokens", "features", "fused"),
    [
        (2048, 512, {"AVX2"}, True),
        (2049, 512, {"AVX2"}, False),
        # 14 heads, 4 bytes a score: 9,216 cells are within 256 MiB, 9,472 are not.
        (9216, 512, {"AVX2"}, False),
        (9472, 512, {"AVX2"}, True),
        (9472, 256, {"AVX2"}, False),
        # Heads of 64 that share keys, with AVX-512: at any length.
        (128, 512, {"AVX2", "AVX512"}, False),
        (9472, 512, {"AVX2", "AVX512"}, True),
        (4096, 512, {"NEON", "FP16_VA"}, True),
        (4096, 512, (), True),
    ],
)
def test_long_contexts_on_x86_compute_attention_in_separate_operations(
    model_file, context_tokens, batch_tokens, features, fused
):
    path = model_file("qwen2-q4_0")
    assert fused is fuses_attention(
        path, read_header(path), context_tokens, batch_tokens, frozenset(features)
    )


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "longest"),
    [
        (6, 6, 48, 192),
        (6, 2, 48, 192),
        (6, 6, 64, 192),
        (6, 2, 64, 0),
        (6, 2, 96, 192),
        (6, 2, 128, 2048),
    ],
)
def test_narrow_heads_gain_by_separate_operations_sooner(heads, kv_heads, width, longest, tmp_path):
    header = _claims(
        "llama",
        embedding_length=heads * width,
        attention__head_count=heads,
        attention__head_count_kv=kv_heads,
    )
    features = frozenset({"AVX2", "AVX512"})
    fused = [fuses_attention(tmp_path, header, tokens, 512, features) for tokens in range(1, 4096)]
    assert fused == [tokens <= longest for tokens in range(1, 4096)]


def test_the_cache_grows_with_grouped_heads_and_whole_blocks_of_cells(model_file):
    path = model_file("qwen2-q4_0")
    # 1,000 tokens take 1,024 cells; two heads of 64, keys and values, F16, two sequences.
    assert _need(path).kv_bytes == 4 * 2 * 64 * 2 * 2 * 1024 * 2
    assert _need(path, cache_bytes_each=4).kv_bytes == 2 * _need(path).kv_bytes


def test_recurrent_layers_take_the_same_at_any_context(model_file):
    path = model_file("mamba-q8_0")
    short, long = (_need(path, context_tokens=tokens).kv_bytes for tokens in (256, 65536))
    # Three columns of convolution and sixteen of state, in F32, of six layers and two sequences.
    assert short == long == (3 * 1536 + 16 * 1536) * 4 * 6 * 2


def _claims(architecture, **numbers):
    """A header that says so much of eight layers; each has a tensor."""
    metadata = {"general.architecture": architecture, f"{architecture}.block_count": 8}
    metadata |= {f"{architecture}.{key.replace('__', '.')}": n for key, n in numbers.items()}
    tensors = tuple(TensorInfo(f"blk.{i}.attn_q.weight", (32, 32), 0, 0, 4096) for i in range(9))
    return GgufHeader(3, metadata, tensors, 9 * 4096)


_HEADS = {
    "embedding_length": 64, "attention__head_count": 4, "attention__head_count_kv": 2,
    "attention__key_length": 16, "attention__value_length": 16,
}  # fmt: skip
_PER_LAYER = 2 * (16 + 16)


@pytest.mark.parametrize(
    ("header", "numbers"),
    [
        # Numbers in the cache for each token; of 256 cells, one sequence.
        (_claims("llama", **_HEADS), 8 * _PER_LAYER),
        # One layer is for predicting further tokens, and does not run.
        (_claims("glm4moe", **_HEADS, nextn_predict_layers=1), 7 * _PER_LAYER),
        # The last three reuse the cache of others.
        (_claims("gemma3n", **_HEADS, attention__shared_kv_layers=3), 5 * _PER_LAYER),
        # Latent attention keeps keys alone.
        (_claims("deepseek2", **_HEADS, attention__key_length_mla=8), 8 * 2 * 16),
    ],
)
def test_each_kind_of_layer_has_its_share_of_the_cache(tmp_path, header, numbers):
    use = _use(context_tokens=256, max_sequences=1)
    assert gguf_need(tmp_path, header, use).kv_bytes == numbers * 2 * 256


def test_mixed_layers_have_a_state_or_a_cache(tmp_path):
    ssm = {"ssm__conv_kernel": 4, "ssm__inner_size": 128, "ssm__state_size": 16,
           "ssm__group_count": 1}  # fmt: skip
    state = (3 * (128 + 2 * 16) + 128 * 16) * 4
    use = _use(context_tokens=256, max_sequences=1)
    # Every fourth layer attends, the others keep a state; Falcon-H1's do both.
    mixed = _claims("qwen3next", **_HEADS, **ssm, full_attention_interval=4)
    both = _claims("falcon-h1", **_HEADS, **ssm)
    cache = _PER_LAYER * 2 * 256
    assert gguf_need(tmp_path, mixed, use).kv_bytes == 6 * state + 2 * cache
    assert gguf_need(tmp_path, both, use).kv_bytes == 8 * (state + cache)


def test_a_damaged_header_cannot_make_the_estimate_run_for_ever(tmp_path):
    header = _claims("llama", **{**_HEADS, "block_count": 1 << 60})
    assert gguf_need(tmp_path, header, _use(context_tokens=256)).kv_bytes < 1 << 30


def test_the_runtimes_own_words_name_the_features():
    said = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | LLAMAFILE = 1 | REPACK = 1 | "
    assert cpu_features(said) == {"SSE3", "AVX2", "LLAMAFILE", "REPACK"}


def test_a_context_is_made_smaller_where_that_is_allowed_and_said(model_file):
    path = model_file("qwen2-q4_0")
    header = read_header(path)
    options = GgufFitOptions(context_tokens=4096, max_sequences=64, shrink_context=True)
    whole = gguf_fit(path, header, "m", options, available_bytes=1 << 40)
    free = whole.need.total_bytes - whole.need.kv_bytes // 2
    with pytest.raises(DoesNotFit, match="with 64 sequences of 4096 tokens"):
        gguf_fit(path, header, "m", replace(options, shrink_context=False), available_bytes=free)
    fit = gguf_fit(path, header, "m", options, available_bytes=free)
    assert 512 <= fit.context_tokens < 4096
    assert fit.context_tokens % 256 == 0
    assert fit.need.least_bytes <= free
    assert f"{fit.context_tokens} tokens instead of 4096" in fit.notes[0]
    with pytest.raises(DoesNotFit):
        gguf_fit(path, header, "m", options, available_bytes=whole.need.weights_bytes // 4)


@pytest.mark.anyio
async def test_the_engines_card_says_that_its_context_was_made_smaller(model_file, monkeypatch):
    from overspill.engines import gguf_fit as module

    path = model_file("qwen2-q4_0")
    whole = _need(path, context_tokens=4096, max_sequences=16)
    # The machine's memory is no object of ours: a number stands for it.
    monkeypatch.setattr(module, "available_memory", lambda: whole.total_bytes - whole.kv_bytes // 2)
    options = EngineOptions(context_tokens=4096, max_sequences=16, threads=1, shrink_context=True)
    async with open_engine(str(path), options=options) as engine:
        assert engine.card.context < 4096
        assert "instead of 4096" in engine.card.notes[0]
        assert engine.card.memory_bytes < whole.total_bytes
