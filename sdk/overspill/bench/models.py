"""Models with random weights at real shapes, made in seconds and kept in the user's cache folder.

A runtime's speed doesn't depend on what the weights are, so the quantized blocks are drawn
directly: random integers under one scale, in the layouts of ggml's ``ggml-common.h``. Matrices
keep their input's size, so that answers wander: with small weights a tied output head repeats the
last token for ever, which speculation would take for a gift. The rows of control and byte tokens
are zero in that head: their logit is 0, never the largest of a vocabulary, so an answer never
ends early and each token shows text.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from overspill.bench.vocabulary import (
    BYTE_TOKENS,
    CHAT_TEMPLATE,
    CONTROL,
    MadeVocabulary,
    make_vocabulary,
)
from overspill.errors import MissingExtra

if TYPE_CHECKING:
    import gguf
    import numpy.typing as npt

    Blocks: TypeAlias = npt.NDArray[np.uint8]

REVISION = 1
"""Part of the files' names: raise it when what is written changes."""
_EMBEDDING = "token_embd.weight"
_EMBEDDING_STD = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's dimensions; ``weights`` and ``embedding`` are ggml's names of block types.

    The embedding is the output head too, and has ``vocabulary`` rows of ``width`` values.
    """

    architecture: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    context_tokens: int
    rope_base: float
    weights: str
    embedding: str
    qkv_bias: bool = False

    @property
    def head_width(self) -> int:
        """Values of one attention head."""
        return self.width // self.heads


SHAPES = {
    # Small enough for a test; nobody's model.
    "mini": Shape("llama", 64, 2, 4, 2, 192, 8704, 4096, 1e4, "Q8_0", "Q8_0"),
    # Karpathy's stories15M: overhead outside the runtime shows.
    "tiny": Shape("llama", 288, 6, 6, 6, 768, 32000, 16384, 1e4, "Q8_0", "Q8_0"),
    # Qwen2.5-0.5B, as its Q4_0 files are.
    "q05": Shape("qwen2", 896, 24, 14, 2, 4864, 151936, 32768, 1e6, "Q4_0", "Q8_0", True),
    # Llama-3.2-1B, as its Q4_K files are.
    "l1b": Shape("llama", 2048, 16, 32, 8, 8192, 128256, 32768, 5e5, "Q4_K", "Q6_K"),
}


def made_model(name: str, folder: Path, *, seed: int = 0) -> Path:
    """The file of a shape, made where it isn't there yet: the same bytes for the same seed.

    Raises :class:`MissingExtra` without the ``gguf`` package, ``KeyError`` for no known shape.
    """
    shape = SHAPES[name]
    path = folder / f"{name}-{shape.weights.lower()}-s{seed}-r{REVISION}.gguf"
    if not path.exists():
        _replace(path, lambda partial: _write_model(partial, name, shape, seed))
    return path


def made_adapter(name: str, folder: Path, *, seed: int, rank: int = 16) -> Path:
    """A LoRA adapter for a shape, on all its attention and feed-forward matrices, in F16."""
    shape = SHAPES[name]
    path = folder / f"{name}-lora{rank}-s{seed}-r{REVISION}.gguf"
    if not path.exists():
        _replace(path, lambda partial: _write_adapter(partial, name, shape, seed, rank))
    return path


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Two that make it at once write two files; the last one stays, and both are whole."""
    if find_spec("gguf") is None:
        raise MissingExtra("Making models for a benchmark", "bench")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# --- tensors ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tensor:
    """``kind`` is a block type, or F32 for a vector of the value ``fill``."""

    name: str
    rows: int
    columns: int
    kind: str
    fill: float = 0.0


def _tensors(shape: Shape) -> Iterator[_Tensor]:
    width, kv_width = shape.width, shape.kv_heads * shape.head_width
    yield _Tensor(_EMBEDDING, shape.vocabulary, width, shape.embedding)
    yield _Tensor("output_norm.weight", 1, width, "F32", 1.0)
    for layer in range(shape.layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield _Tensor(f"blk.{layer}.{norm}.weight", 1, width, "F32", 1.0)
        for part, rows, columns in _matrices(shape):
            yield _Tensor(f"blk.{layer}.{part}.weight", rows, columns, shape.weights)
        if shape.qkv_bias:
            for part, size in (("attn_q", width), ("attn_k", kv_width), ("attn_v", kv_width)):
                yield _Tensor(f"blk.{layer}.{part}.bias", 1, size, "F32")


def _matrices(shape: Shape) -> tuple[tuple[str, int, int], ...]:
    """(name, outputs, inputs) of a layer's matrices."""
    width, kv_width, wide = shape.width, shape.kv_heads * shape.head_width, shape.feed_forward
    return (
        ("attn_q", width, width),
        ("attn_k", kv_width, width),
        ("attn_v", kv_width, width),
        ("attn_output", width, width),
        ("ffn_gate", wide, width),
        ("ffn_up", wide, width),
        ("ffn_down", width, wide),
    )


def _random_blocks(tensor: _Tensor, seed: int) -> Blocks:
    """Blocks of the tensor's kind, one row of bytes per matrix row."""
    values_each, draw = _KINDS[tensor.kind]
    std = _EMBEDDING_STD if tensor.name == _EMBEDDING else tensor.columns**-0.5
    if tensor.columns % values_each:
        raise ValueError(f"{tensor.name}: {tensor.columns} is no multiple of {values_each}")
    random = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    blocks = draw(random, tensor.rows * tensor.columns // values_each, std)
    return blocks.reshape(tensor.rows, -1)


def _scale(value: float, blocks: int) -> Blocks:
    return np.full(blocks, value, "<f2").view(np.uint8).reshape(blocks, 2)


def _bytes(random: np.random.Generator, blocks: int, each: int) -> Blocks:
    return np.frombuffer(random.bytes(blocks * each), np.uint8).reshape(blocks, each)


def _q8_0(random: np.random.Generator, blocks: int, std: float) -> Blocks:
    """A half-precision scale, 32 signed bytes (-127 to 127, as quantizers write them)."""
    values = np.maximum(_bytes(random, blocks, 32).view(np.int8), -127).view(np.uint8)
    return np.hstack([_scale(std / 73.5, blocks), values])


def _q4_0(random: np.random.Generator, blocks: int, std: float) -> Blocks:
    """A scale, 32 nibbles; a value is scale * (nibble - 8)."""
    return np.hstack([_scale(std / 4.6, blocks), _bytes(random, blocks, 16)])


def _q4_k(random: np.random.Generator, blocks: int, std: float) -> Blocks:
    """256 values: scale, minimum's scale, 8 pairs of 6-bit scales in 12 bytes, 256 nibbles.

    A value is d * s * nibble - dmin * m; with dmin 7.5 * d its mean is about 0.
    """
    d = std / (32 * 4.6)
    return np.hstack([_scale(d, blocks), _scale(7.5 * d, blocks), _bytes(random, blocks, 140)])


def _q6_k(random: np.random.Generator, blocks: int, std: float) -> Blocks:
    """256 values: low nibbles, high pairs of bits, 16 signed scales, then the block's scale."""
    return np.hstack([_bytes(random, blocks, 208), _scale(std / (73.5 * 18.5), blocks)])


Draw: TypeAlias = "Callable[[np.random.Generator, int, float], Blocks]"
_KINDS: dict[str, tuple[int, Draw]] = {
    # block type: (values in a block, draws blocks)
    "Q8_0": (32, _q8_0),
    "Q4_0": (32, _q4_0),
    "Q4_K": (256, _q4_k),
    "Q6_K": (256, _q6_k),
}


def _data(tensor: _Tensor, seed: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    if tensor.kind == "F32":
        return np.full(tensor.columns, tensor.fill, np.float32)
    blocks = _random_blocks(tensor, seed)
    if tensor.name == _EMBEDDING:
        # Blocks of zeros are zero values in every layout.
        blocks = blocks.copy()
        blocks[:BYTE_TOKENS] = 0
        blocks[-len(CONTROL) :] = 0
    return blocks


# --- files --------------------------------------------------------------------------------------


def _write_model(path: Path, name: str, shape: Shape, seed: int) -> None:
    import gguf

    kinds = {t.name: getattr(gguf.GGMLQuantizationType, t.kind) for t in _tensors(shape)}
    with closing(gguf.GGUFWriter(path, shape.architecture)) as writer:
        writer.add_name(f"random-{name}")
        writer.add_file_type(_FILE_TYPES[shape.weights])
        _add_shape(writer, shape)
        _add_vocabulary(writer, make_vocabulary(shape.vocabulary))
        for tensor in _tensors(shape):
            _announce(writer, tensor, kinds[tensor.name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in _tensors(shape):  # drawn one by one: a large model is never in memory
            writer.write_tensor_data(_data(tensor, seed))


# ggml's `llama_ftype` for files whose matrices are mostly of that type.
_FILE_TYPES = {"Q8_0": 7, "Q4_0": 2, "Q4_K": 15}


def _announce(writer: gguf.GGUFWriter, tensor: _Tensor, kind: gguf.GGMLQuantizationType) -> None:
    if tensor.kind == "F32":
        writer.add_tensor_info(
            tensor.name, (tensor.columns,), np.dtype(np.float32), 4 * tensor.columns
        )
        return
    values_each, draw = _KINDS[tensor.kind]
    block_bytes = draw(np.random.default_rng(0), 1, 1.0).size
    row_bytes = tensor.columns // values_each * block_bytes
    writer.add_tensor_info(
        tensor.name,
        (tensor.rows, row_bytes),
        np.dtype(np.uint8),
        tensor.rows * row_bytes,
        raw_dtype=kind,
    )


def _add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_vocabulary(writer: gguf.GGUFWriter, made: MadeVocabulary) -> None:
    import gguf

    ordinary = len(made.tokens) - len(CONTROL)
    kinds = [gguf.TokenType.NORMAL] * ordinary + [gguf.TokenType.CONTROL] * len(CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(made.tokens))
    writer.add_token_types(kinds)
    writer.add_token_merges(list(made.merges))
    writer.add_eos_token_id(made.end_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _write_adapter(path: Path, name: str, shape: Shape, seed: int, rank: int) -> None:
    import gguf

    random = np.random.default_rng([seed, rank])

    def draw(rows: int, columns: int) -> npt.NDArray[np.float16]:
        return (random.standard_normal((rows, columns), np.float32) * 0.02).astype("<f2")

    with closing(gguf.GGUFWriter(path, shape.architecture)) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(f"random-{name}-adapter-{seed}")
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
        for layer in range(shape.layers):
            for part, outputs, inputs in _matrices(shape):
                tensor = f"blk.{layer}.{part}.weight"
                writer.add_tensor(f"{tensor}.lora_a", draw(rank, inputs))
                writer.add_tensor(f"{tensor}.lora_b", draw(outputs, rank))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
