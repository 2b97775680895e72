"""Writes GGUF files with random weights, of any architecture: dimensions in, a loadable file out.

The vocabulary is SentencePiece-like and made on the spot, for `bert` WordPiece-like. Loaded through
the ``made_gguf`` fixture, since test modules cannot import each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Tensor = tuple[str, tuple[int, ...], str]
"""Name, shape (rows before columns, as numpy has it) and ggml type: "F32" for vectors."""


@dataclass(frozen=True)
class Shape:
    """A model's dimensions; ``extra`` are further metadata keys, without the architecture."""

    architecture: str = "llama"
    width: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 256
    vocabulary: int = 1024
    context: int = 4096
    weights: str = "F32"
    embedding: str = "F32"
    head_width: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def head(self) -> int:
        """Values of one attention head."""
        return self.head_width or self.width // self.heads


def write(path: Path, shape: Shape, *, seed: int = 0) -> Path:
    """Write a model of this shape; the same bytes for the same seed."""
    writer = gguf.GGUFWriter(str(path), shape.architecture)
    _write_metadata(writer, shape)
    random = np.random.default_rng(seed)
    for name, dimensions, kind in _TENSORS[shape.architecture](shape):
        _add_tensor(writer, random, name, dimensions, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_vocab_size(shape.vocabulary)
    if shape.heads:
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_key_length(shape.head)
        writer.add_value_length(shape.head)
    if shape.architecture == "bert":
        writer.add_layer_norm_eps(1e-12)
    else:
        writer.add_layer_norm_rms_eps(1e-5)
    for key, value in shape.extra.items():
        _add(writer, f"{shape.architecture}.{key}", value)
    (_word_pieces if shape.architecture == "bert" else _sentence_pieces)(writer, shape.vocabulary)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case list():
            writer.add_array(key, value)


def _sentence_pieces(writer: gguf.GGUFWriter, size: int) -> None:
    """Three control tokens, 256 bytes, printable characters, then numbered words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    pieces = ["\u2581", *(chr(code) for code in range(33, 127))]
    pieces += [f"\u2581w{number}" for number in range(size - len(tokens) - len(pieces))]
    tokens += pieces
    kinds += [1] * len(pieces)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens[:size])
    writer.add_token_scores([-float(i) for i in range(size)])
    writer.add_token_types(kinds[:size])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    )


def _word_pieces(writer: gguf.GGUFWriter, size: int) -> None:
    """BERT's special tokens, letters at the start and inside of words, then numbered words."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    kinds = [3] * len(tokens)
    letters = [chr(code) for code in range(33, 127)]
    # llama.cpp marks a word's beginning as SentencePiece does.
    pieces = [f"\u2581{letter}" for letter in letters] + letters
    pieces += [f"\u2581w{number}" for number in range(size - len(tokens) - len(pieces))]
    writer.add_tokenizer_model("bert")
    writer.add_token_list([*tokens, *pieces][:size])
    writer.add_token_types([*kinds, *[1] * len(pieces)][:size])
    writer.add_token_type_count(2)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_unk_token_id(1)
    writer.add_sep_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_mask_token_id(4)


def _add_tensor(
    writer: gguf.GGUFWriter,
    random: np.random.Generator,
    name: str,
    dimensions: tuple[int, ...],
    kind: str,
) -> None:
    if len(dimensions) == 1:
        values = np.zeros if name.endswith("bias") else np.ones
        writer.add_tensor(name, values(dimensions, np.float32))
        return
    if kind == "F32":
        scale = np.float32(dimensions[-1] ** -0.5)
        writer.add_tensor(name, random.standard_normal(dimensions, np.float32) * scale)
        return
    block = gguf.GGMLQuantizationType[kind]
    values_each, bytes_each = gguf.GGML_QUANT_SIZES[block]
    shape = (*dimensions[:-1], dimensions[-1] // values_each * bytes_each)
    # Zeros are a valid block of every type, and memory doesn't depend on what is in it.
    writer.add_tensor(name, np.zeros(shape, np.uint8), raw_dtype=block)


def _decoder(shape: Shape) -> Iterator[Tensor]:
    """Llama, Qwen2, Qwen2-VL and, with its norms, Gemma 3."""
    width, kind = shape.width, shape.weights
    heads, kv_heads = shape.heads * shape.head, shape.kv_heads * shape.head
    yield "token_embd.weight", (shape.vocabulary, width), shape.embedding
    yield "output_norm.weight", (width,), "F32"
    for layer in range(shape.layers):
        blk = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            yield f"{blk}{norm}.weight", (width,), "F32"
        if shape.architecture == "gemma3":
            for norm in ("post_attention_norm", "post_ffw_norm"):
                yield f"{blk}{norm}.weight", (width,), "F32"
            for norm in ("attn_q_norm", "attn_k_norm"):
                yield f"{blk}{norm}.weight", (shape.head,), "F32"
        for name, rows, columns in (
            ("attn_q", heads, width),
            ("attn_k", kv_heads, width),
            ("attn_v", kv_heads, width),
            ("attn_output", width, heads),
            ("ffn_gate", shape.feed_forward, width),
            ("ffn_up", shape.feed_forward, width),
            ("ffn_down", width, shape.feed_forward),
        ):
            yield f"{blk}{name}.weight", (rows, columns), kind
        if shape.architecture in ("qwen2", "qwen2vl"):
            for name, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                yield f"{blk}attn_{name}.bias", (rows,), "F32"


def _mamba(shape: Shape) -> Iterator[Tensor]:
    width, inner = shape.width, shape.extra["ssm.inner_size"]
    state, rank = shape.extra["ssm.state_size"], shape.extra["ssm.time_step_rank"]
    yield "token_embd.weight", (shape.vocabulary, width), shape.embedding
    yield "output_norm.weight", (width,), "F32"
    for layer in range(shape.layers):
        blk = f"blk.{layer}."
        yield f"{blk}attn_norm.weight", (width,), "F32"
        yield f"{blk}ssm_in.weight", (2 * inner, width), shape.weights
        yield f"{blk}ssm_conv1d.weight", (inner, shape.extra["ssm.conv_kernel"]), "F32"
        yield f"{blk}ssm_conv1d.bias", (inner,), "F32"
        yield f"{blk}ssm_x.weight", (rank + 2 * state, inner), shape.weights
        yield f"{blk}ssm_dt.weight", (inner, rank), "F32"
        yield f"{blk}ssm_dt.bias", (inner,), "F32"
        yield f"{blk}ssm_a", (inner, state), "F32"
        yield f"{blk}ssm_d", (inner,), "F32"
        yield f"{blk}ssm_out.weight", (width, inner), shape.weights


def _bert(shape: Shape) -> Iterator[Tensor]:
    width, kind = shape.width, shape.weights
    yield "token_embd.weight", (shape.vocabulary, width), shape.embedding
    yield "token_types.weight", (2, width), "F32"
    yield "position_embd.weight", (shape.context, width), "F32"
    for part in ("weight", "bias"):
        yield f"token_embd_norm.{part}", (width,), "F32"
    for layer in range(shape.layers):
        blk = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{blk}{name}.weight", (width, width), kind
            yield f"{blk}{name}.bias", (width,), "F32"
        yield f"{blk}ffn_up.weight", (shape.feed_forward, width), kind
        yield f"{blk}ffn_up.bias", (shape.feed_forward,), "F32"
        yield f"{blk}ffn_down.weight", (width, shape.feed_forward), kind
        yield f"{blk}ffn_down.bias", (width,), "F32"
        for norm in ("attn_output_norm", "layer_output_norm"):
            for part in ("weight", "bias"):
                yield f"{blk}{norm}.{part}", (width,), "F32"


_TENSORS = {
    "llama": _decoder,
    "qwen2": _decoder,
    "qwen2vl": _decoder,
    "gemma3": _decoder,
    "mamba": _mamba,
    "bert": _bert,
}
