"""What llama.cpp takes for a GGUF file, worked out from its header before anything is loaded.

Derived from llama.cpp's source as of llama-cpp-python 0.3.36 and checked against what loading
takes (``tests/engines/test_fit.py``):

- Weights stay mapped from the file, from the first tensor that is used there to the last. A matrix
  whose type has a faster layout on this CPU (``ggml_repack_get_optimal_repack_type``) is copied
  into it, and the pages of the file that held it are no longer read.
- The KV cache is allocated whole: cells are a multiple of 256, per sequence. Layers with a sliding
  window keep all cells too (``swa_full``, the runtime's default).
  Recurrent layers hold a state of fixed size per sequence, in F32.
- A step of ``batch_tokens`` tokens works in one buffer, as large as the largest moment of its
  graph: the feed-forward layer, attention where it isn't fused, or the logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overspill.engines.gguf_header import ArrayInfo, GgufHeader, TensorInfo, read_numbers
from overspill.engines.memory import F16_BYTES, MemoryNeed

F32_BYTES = 4
_CELLS = 256
_TOKEN_BYTES, _MERGE_BYTES = 145, 150
"""Of a vocabulary in memory, each; measured on nine real ones, right within a quarter."""
_CONTEXT_BYTES = 4 << 20
"""Of graphs, threads and the library's own pages: 4.3 to 6.9 MB, whatever the model."""

_WINDOW_PATTERNS = {
    # Of so many layers one has full attention (the last; the first where True), unless the file
    # says otherwise: the `load_swa_pattern` of each architecture.
    "afmoe": (4, False),
    "cohere2": (4, False),
    "exaone4": (4, False),
    "exaone-moe": (4, False),
    "gemma-embedding": (6, False),
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gpt-oss": (2, False),
    "llama4": (4, False),
    "modern-bert": (3, True),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "smallthinker": (4, True),
}

_NO_CACHE = {
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert",
    "modern-bert", "gemma-embedding", "dream", "llada", "llada-moe",
}  # fmt: skip
"""Architectures that llama.cpp runs without a cache (``create_memory``)."""

_REPACKED: dict[str, tuple[tuple[frozenset[str], int], ...]] = {
    # ggml type: (CPU features that all must be there, what the rows must be a multiple of)
    "Q4_0": ((frozenset({"AVX2"}), 8), (frozenset({"NEON", "DOTPROD"}), 4)),
    "Q4_K": ((frozenset({"AVX2"}), 8), (frozenset({"NEON", "DOTPROD"}), 8)),
    "Q2_K": ((frozenset({"AVX512"}), 8),),
    "Q5_K": ((frozenset({"NEON", "DOTPROD"}), 8),),
    "Q6_K": ((frozenset({"NEON", "DOTPROD"}), 8),),
    "IQ4_NL": ((frozenset({"AVX2"}), 8), (frozenset({"NEON", "DOTPROD"}), 4)),
    "MXFP4": ((frozenset({"AVX2"}), 8), (frozenset({"NEON", "DOTPROD"}), 4)),
    "Q8_0": ((frozenset({"NEON", "DOTPROD"}), 4),),
}
_TYPE_NAMES = {2: "Q4_0", 8: "Q8_0", 10: "Q2_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
               20: "IQ4_NL", 39: "MXFP4"}  # fmt: skip
LONG_CONTEXT_TOKENS, SHORT_CONTEXT_TOKENS = 2048, 192
WIDE_HEAD, SHARED_HEAD = 128, 64
MAX_SCORES_BYTES = 256 << 20
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True, slots=True)
class LlamaUse:
    """How a file is going to be used; ``context_tokens`` is per sequence.

    ``cpu_features`` are the names in llama.cpp's own ``llama_print_system_info``. ``fused``: flash
    attention is on.
    """

    context_tokens: int
    max_sequences: int
    batch_tokens: int
    cpu_features: frozenset[str] = frozenset()
    cache_bytes_each: int = F16_BYTES
    fused: bool = True
    outputs: int | None = None
    """Rows of output in one step; None means those of each sequence's next token and draft."""
    draft_tokens: int = 0
    """Of each sequence, checked in one step; what cannot be cut checks none."""


def gguf_need(path: Path, header: GgufHeader, use: LlamaUse) -> MemoryNeed:
    """What loading and then filling the context takes. Reads a few arrays of the file."""
    shape = _Shape.read(path, header)
    mapped, repacked, dropped = _weights(header, use.cpu_features)
    outputs = use.outputs or _outputs(shape, use)
    return MemoryNeed(
        weights_bytes=mapped,
        repacked_bytes=repacked,
        reclaimable_bytes=dropped,
        kv_bytes=_kv_bytes(shape, use) + _state_bytes(shape, use),
        compute_bytes=_compute_bytes(shape, use, outputs),
        runtime_bytes=_CONTEXT_BYTES
        + _vocabulary_bytes(header)
        + outputs * shape.vocabulary * F32_BYTES,
    )


def fuses_attention(
    path: Path,
    header: GgufHeader,
    context_tokens: int,
    batch_tokens: int,
    features: frozenset[str],
) -> bool:
    """Whether attention is better computed in one operation (flash attention).

    On x86 the fused one works row by row: at 2,000 tokens behind it a token took 1.4 times, and a
    chunk of 16 took 1.8 times what separate operations take; at 100 tokens it is up to a tenth
    faster. So long contexts get the separate ones, as long as their scores stay small.
    """
    if "AVX2" not in features:
        return True
    shape = _Shape.read(path, header)
    if context_tokens <= _fused_until(shape, features):
        return True
    return _cells(context_tokens) * batch_tokens * shape.heads * F32_BYTES > MAX_SCORES_BYTES


def _fused_until(shape: _Shape, features: frozenset[str]) -> int:
    """Tokens of the longest context for which the fused operation is better.

    With AVX-512 narrow heads gain by separate ones much earlier: steps of 16 rows behind 960 tokens
    took 380 ms fused and 165 separate with the heads of a 0.5 B model (14 of 64 numbers, two of
    keys), and 49 and 21 with six of 80; they broke even at 100 to 150 tokens, at 30 with heads of
    64 that share keys, and at 960 with heads of 128. Prompts go 5 to 10% slower for it. Sixteen
    answers that went on from 64 tokens to 192 took 0.92 to 0.97 of the time. Built for AVX2 alone
    the library broke even behind 450 tokens, and such prompts took 15 to 24% longer.
    """
    head = shape.query_width // max(1, shape.heads)
    if "AVX512" not in features or head >= WIDE_HEAD:
        return LONG_CONTEXT_TOKENS
    shares_keys = any(0 < layer.keys < shape.query_width for layer in shape.layers)
    return 0 if head == SHARED_HEAD and shares_keys else SHORT_CONTEXT_TOKENS


def cpu_features(system_info: str) -> frozenset[str]:
    """The names that ``llama_print_system_info`` says are on: "CPU : AVX2 = 1 | REPACK = 1 | "."""
    parts = system_info.replace(":", "|").split("|")
    pairs = (part.partition("=") for part in parts)
    return frozenset(name.strip() for name, _, value in pairs if value.strip() == "1")


# --- shape --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    """``keys`` and ``values`` are numbers per token in the cache; ``state`` is recurrent state,
    in numbers per sequence; ``window`` says whether attention is limited to one."""

    keys: int = 0
    values: int = 0
    window: bool = False
    state: int = 0


@dataclass(frozen=True, slots=True)
class _Shape:
    """A model's dimensions, as far as memory depends on them."""

    layers: tuple[_Layer, ...]
    width: int
    heads: int
    query_width: int
    feed_forward: int
    gated: bool
    inner: int
    vocabulary: int
    has_cache: bool

    @classmethod
    def read(cls, path: Path, header: GgufHeader) -> _Shape:
        """From the header's metadata; what it doesn't say counts as nothing."""
        facts = _Facts(path, header)
        heads, width = facts.most("attention.head_count"), facts.number("embedding_length")
        head = width // heads if heads else 0
        embedding = next((t for t in header.tensors if t.name == _EMBEDDING), None)
        expert = facts.number("expert_feed_forward_length") * facts.number("expert_used_count")
        return cls(
            # No layer is without a tensor: what a damaged file claims is bounded by what it has.
            layers=tuple(
                _layer(facts, index, head)
                for index in range(min(_trunk(facts), len(header.tensors)))
            ),
            width=width,
            heads=heads,
            query_width=heads * facts.number("attention.key_length", head),
            feed_forward=max(facts.most("feed_forward_length"), expert),
            gated=any(".ffn_gate" in tensor.name for tensor in header.tensors),
            inner=facts.number("ssm.inner_size"),
            vocabulary=embedding.shape[-1] if embedding else facts.number("vocab_size"),
            has_cache=header.architecture not in _NO_CACHE,
        )


class _Facts:
    """Numbers of the metadata, under the architecture's own prefix."""

    def __init__(self, path: Path, header: GgufHeader) -> None:
        self.architecture = header.architecture
        self._path = path
        self._metadata: Mapping[str, Any] = header.metadata
        self._arrays: dict[str, tuple[int, ...]] = {}

    def number(self, key: str, default: int = 0) -> int:
        """One number; ``default`` where there is none."""
        value = self._metadata.get(f"{self.architecture}.{key}", default)
        return value if isinstance(value, int) else default

    def each(self, key: str, layer: int, default: int = 0) -> int:
        """A layer's number: its own where the file has a list, else the one for all."""
        values = self._array(key)
        if not values:
            return self.number(key, default)
        return values[layer] if layer < len(values) else default

    def most(self, key: str) -> int:
        """The largest of all layers."""
        return max(self._array(key), default=0) or self.number(key)

    def has_list(self, key: str) -> bool:
        """Whether it is told by layer."""
        return bool(self._array(key))

    def _array(self, key: str) -> tuple[int, ...]:
        if key not in self._arrays:
            value = self._metadata.get(f"{self.architecture}.{key}")
            numbers = read_numbers(self._path, value) if isinstance(value, ArrayInfo) else ()
            self._arrays[key] = tuple(int(number) for number in numbers)
        return self._arrays[key]


def _trunk(facts: _Facts) -> int:
    """Layers that run; those for predicting further tokens are loaded and left alone."""
    return max(0, facts.number("block_count") - facts.number("nextn_predict_layers"))


def _layer(facts: _Facts, index: int, head: int) -> _Layer:
    state = _state_values(facts) if _is_recurrent(facts, index) else 0
    shares = index >= _trunk(facts) - facts.number("attention.shared_kv_layers")
    # Falcon-H1 has both in each layer.
    if shares or (state and facts.architecture != "falcon-h1"):
        return _Layer(state=state)
    kv_heads = facts.each("attention.head_count_kv", index, facts.most("attention.head_count"))
    window = _has_window(facts, index)
    suffix = "_swa" if window and facts.number("attention.key_length_swa") else ""
    keys = kv_heads * facts.number(f"attention.key_length{suffix}", head)
    values = kv_heads * facts.number(f"attention.value_length{suffix}", head)
    if facts.number("attention.key_length_mla"):
        # Latent attention: the values are part of the keys.
        values = 0
    return _Layer(keys, values, window, state)


def _has_window(facts: _Facts, index: int) -> bool:
    if not facts.number("attention.sliding_window"):
        return False
    key = "attention.sliding_window_pattern"
    if facts.has_list(key):
        return bool(facts.each(key, index))
    known, first = _WINDOW_PATTERNS.get(facts.architecture, (1, False))
    pattern = facts.number(key, known)
    if pattern == 0:
        return True
    return index % pattern != 0 if first else index % pattern < pattern - 1


def _is_recurrent(facts: _Facts, index: int) -> bool:
    if facts.architecture == "falcon-h1":
        return True
    interval = facts.number("full_attention_interval")
    if interval:
        return (index + 1) % interval != 0
    if not _state_values(facts):
        return False
    return facts.each("attention.head_count_kv", index) == 0


def _state_values(facts: _Facts) -> int:
    """Of one recurrent layer, per sequence: `n_embd_r` and `n_embd_s` of llama-hparams.cpp."""
    width = facts.number("embedding_length")
    if head := facts.number("wkv.head_size"):
        return width * (facts.number("token_shift_count", 2) + head)
    if kernel := facts.number("shortconv.l_cache"):
        return width * (kernel - 1)
    inner, state = facts.number("ssm.inner_size"), facts.number("ssm.state_size")
    past = max(0, facts.number("ssm.conv_kernel") - 1)
    return past * (inner + 2 * facts.number("ssm.group_count") * state) + state * inner


# --- bytes --------------------------------------------------------------------------------------


def _weights(header: GgufHeader, features: frozenset[str]) -> tuple[int, int, int]:
    """(mapped, copied into another layout, mapped but never read again), in bytes."""
    has_output = any(tensor.name == _OUTPUT for tensor in header.tensors)
    begin, end, copied, dropped = header.file_size, 0, 0, 0
    for tensor in header.tensors:
        packs = _is_repacked(tensor, features)
        if packs and (tensor.name != _EMBEDDING or not has_output):
            copied += tensor.size
        # Rows of the embedding are looked up in the file; the head may be a repacked copy of it.
        if packs and tensor.name != _EMBEDDING:
            dropped += tensor.size
            continue
        begin, end = min(begin, tensor.offset), max(end, tensor.offset + tensor.size)
    mapped = max(0, end - begin)
    return mapped, copied, max(0, min(dropped, mapped - _read(header.tensors, features)))


def _read(tensors: Iterable[TensorInfo], features: frozenset[str]) -> int:
    """Bytes of the tensors that stay in use where the file is mapped."""
    return sum(t.size for t in tensors if t.name == _EMBEDDING or not _is_repacked(t, features))


def _is_repacked(tensor: TensorInfo, features: frozenset[str]) -> bool:
    if "REPACK" not in features or len(tensor.shape) < 2 or not tensor.name.endswith(".weight"):
        return False
    rules = _REPACKED.get(_TYPE_NAMES.get(tensor.type, ""), ())
    return any(need <= features and tensor.shape[1] % rows == 0 for need, rows in rules)


def _cells(tokens: int) -> int:
    return -(-tokens // _CELLS) * _CELLS


def _kv_bytes(shape: _Shape, use: LlamaUse) -> int:
    if not shape.has_cache:
        return 0
    cells = _cells(use.context_tokens)
    numbers = sum(layer.keys + layer.values for layer in shape.layers)
    return numbers * cells * use.cache_bytes_each * use.max_sequences


def _state_bytes(shape: _Shape, use: LlamaUse) -> int:
    return sum(layer.state for layer in shape.layers) * F32_BYTES * use.max_sequences


def _compute_bytes(shape: _Shape, use: LlamaUse, outputs: int) -> int:
    """The largest moment of a step's graph, as ggml's allocator lays it out.

    Residual, normed input and two more of the layer's width live beside the three of the
    feed-forward layer (gate, up and their product); masks live all the while, in F16 for fused
    attention and one for each kind of layer.
    """
    tokens = min(use.batch_tokens, _cells(use.context_tokens) * use.max_sequences)
    row = tokens * F32_BYTES
    parts = 3 if shape.gated else 1
    widths = 3 * shape.width + max(shape.width, shape.query_width)
    forward = row * (parts * shape.feed_forward + widths)
    recurrent = row * int(6.5 * shape.inner)
    # A token is masked against the cells of its own sequence only.
    cells = _cells(use.context_tokens) if shape.has_cache else tokens
    attends = any(layer.keys for layer in shape.layers)
    kinds = len({layer.window for layer in shape.layers if layer.keys})
    mask = cells * tokens * kinds * (F16_BYTES if use.fused else F32_BYTES)
    scores = 0
    if attends and not use.fused:
        kv_width = max(layer.keys for layer in shape.layers)
        scores = cells * row * shape.heads + row * (5 * shape.width + 2 * kv_width)
        if use.cache_bytes_each < F32_BYTES:
            # The values' product wants them once more in the values' own type.
            scores += cells * tokens * shape.heads * use.cache_bytes_each
    # What only embeds computes no logits, though it keeps room for them among its outputs.
    logits = outputs * (shape.vocabulary + 2 * shape.width) * F32_BYTES if shape.has_cache else 0
    return max(max(forward, recurrent, scores) + mask, logits)


def _outputs(shape: _Shape, use: LlamaUse) -> int:
    """llama.cpp makes room for a row of each sequence, and for more when a step first wants it."""
    checked = 0 if any(layer.state for layer in shape.layers) else use.draft_tokens
    return max(use.max_sequences, min(use.batch_tokens, use.max_sequences * (1 + checked)))


def _vocabulary_bytes(header: GgufHeader) -> int:
    def length(key: str) -> int:
        value = header.metadata.get(f"tokenizer.ggml.{key}")
        return value.length if isinstance(value, ArrayInfo) else 0

    return length("tokens") * _TOKEN_BYTES + length("merges") * _MERGE_BYTES
