"""Writes projector files (mmproj) with random weights, small enough to run in milliseconds, and
pictures to look at with them.

Loaded through the ``made_mmproj`` fixture, since test modules cannot import each other.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np

Tensor = tuple[str, tuple[int, ...]]

TILES = [32, 64, 64, 32, 64, 64]
"""Sizes, in pairs, to which an image may be cut."""

ARCHITECTURES = {
    "mlp": "llama",
    "tiles": "llama",
    "gemma3": "gemma3",
    "qwen2vl_merger": "qwen2vl",
}
"""The text model that each kind of projector is made for."""


@dataclass(frozen=True)
class Projector:
    """``kind``: ``mlp`` (LLaVA), ``tiles`` (LLaVA 1.6: an image is cut into several),
    ``gemma3`` (images see themselves), ``qwen2vl_merger`` (M-RoPE).

    ``text_width`` is the embedding length of the text model that it belongs to.
    """

    kind: str = "mlp"
    text_width: int = 64
    width: int = 32
    layers: int = 2
    heads: int = 2
    feed_forward: int = 48
    image_size: int = 32
    patch: int = 8


def write(path: Path, shape: Projector, *, seed: int = 0) -> Path:
    """Write a projector; the same bytes for the same seed."""
    writer = gguf.GGUFWriter(str(path), "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp" if shape.kind == "tiles" else shape.kind)
    for key, value in (
        ("embedding_length", shape.width),
        ("feed_forward_length", shape.feed_forward),
        ("block_count", shape.layers),
        ("projection_dim", shape.text_width),
        ("attention.head_count", shape.heads),
        ("image_size", shape.image_size),
        ("patch_size", shape.patch),
    ):
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    if shape.kind == "gemma3":
        writer.add_uint32("clip.vision.projector.scale_factor", 2)
    if shape.kind == "tiles":
        writer.add_array("clip.vision.image_grid_pinpoints", TILES)
    for key, each in (("image_mean", 0.5), ("image_std", 0.5)):
        writer.add_array(f"clip.vision.{key}", [each] * 3)
    random = np.random.default_rng(seed)
    for name, dimensions in _tensors(shape):
        if len(dimensions) == 1:
            make = np.ones if name.endswith("weight") else np.zeros
            writer.add_tensor(name, make(dimensions, np.float32))
        else:
            scale = np.float32(np.prod(dimensions[1:]) ** -0.5)
            writer.add_tensor(name, random.standard_normal(dimensions, np.float32) * scale)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(shape: Projector) -> Iterator[Tensor]:
    width, inner = shape.width, shape.feed_forward
    patches = (shape.image_size // shape.patch) ** 2
    yield "v.patch_embd.weight", (width, 3, shape.patch, shape.patch)
    if shape.kind == "qwen2vl_merger":
        yield "v.patch_embd.weight.1", (width, 3, shape.patch, shape.patch)
    else:
        yield "v.position_embd.weight", (patches, width)
    for layer in range(shape.layers):
        blk = f"v.blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            yield f"{blk}{name}.weight", (width, width)
            yield f"{blk}{name}.bias", (width,)
        yield f"{blk}ffn_up.weight", (inner, width)
        yield f"{blk}ffn_up.bias", (inner,)
        yield f"{blk}ffn_down.weight", (width, inner)
        yield f"{blk}ffn_down.bias", (width,)
        for norm in ("ln1", "ln2"):
            yield f"{blk}{norm}.weight", (width,)
            yield f"{blk}{norm}.bias", (width,)
    yield "v.post_ln.weight", (width,)
    yield "v.post_ln.bias", (width,)
    yield from _PROJECTIONS[shape.kind](shape)


def _mlp(shape: Projector) -> Iterator[Tensor]:
    yield "mm.0.weight", (shape.text_width, shape.width)
    yield "mm.0.bias", (shape.text_width,)
    yield "mm.2.weight", (shape.text_width, shape.text_width)
    yield "mm.2.bias", (shape.text_width,)


def _gemma3(shape: Projector) -> Iterator[Tensor]:
    yield "mm.input_projection.weight", (shape.width, shape.text_width)
    yield "mm.soft_emb_norm.weight", (shape.width,)


def _qwen2vl(shape: Projector) -> Iterator[Tensor]:
    merged = 4 * shape.width
    yield "mm.0.weight", (merged, merged)
    yield "mm.0.bias", (merged,)
    yield "mm.2.weight", (shape.text_width, merged)
    yield "mm.2.bias", (shape.text_width,)


_PROJECTIONS = {"mlp": _mlp, "tiles": _mlp, "gemma3": _gemma3, "qwen2vl_merger": _qwen2vl}


def pair(made_gguf: ModuleType, folder: Path, kind: str = "mlp") -> tuple[Path, Path]:
    """A small model and its projector in a folder, made once."""
    architecture = ARCHITECTURES[kind]
    model, projector = folder / f"{architecture}.gguf", folder / f"mmproj-{kind}.gguf"
    if not model.exists():
        grid = {"rope.dimension_sections": [2, 3, 3, 0]} if architecture == "qwen2vl" else {}
        shape = made_gguf.Shape(
            architecture=architecture, width=64, feed_forward=96, vocabulary=512, extra=grid
        )
        made_gguf.write(model, shape)
    if not projector.exists():
        write(projector, Projector(kind=kind, text_width=64))
    return model, projector


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and is not."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rest = chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + rest


def png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """A picture as PNG: [height, width, 3]."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def noise(seed: int, height: int = 40, width: int = 30) -> bytes:
    """A picture of its own for each seed, as PNG."""
    random = np.random.default_rng(seed)
    return png(random.integers(0, 255, (height, width, 3), np.uint8))
