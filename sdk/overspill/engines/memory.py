"""Whether a model fits: its weights and the KV cache at full growth, against the memory there is.

A runtime that is short of memory is killed by the system, or has others killed: so this is
asked before anything is loaded, and the refusal shows the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overspill.errors import DoesNotFit

F16_BYTES = 2
_MIB = 1 << 20
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one token takes in the KV cache: ``values`` are numbers in all layers together."""

    values: int
    bytes_each: int = F16_BYTES

    @property
    def token_bytes(self) -> int:
        """Bytes of one token."""
        return self.values * self.bytes_each


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What loading a model takes, in bytes, the KV cache grown to its full size."""

    weights_bytes: int
    kv_bytes: int

    @property
    def total_bytes(self) -> int:
        """Weights and cache together."""
        return self.weights_bytes + self.kv_bytes


def memory_need(
    weights_bytes: int, kv: KvShape | None, *, context_tokens: int, max_sequences: int
) -> MemoryNeed:
    """Weights, and every sequence at its full context; an unknown shape counts as nothing."""
    token_bytes = 0 if kv is None else kv.token_bytes
    return MemoryNeed(weights_bytes, token_bytes * context_tokens * max_sequences)


def check_fits(need: MemoryNeed, name: str, *, available_bytes: int | None) -> None:
    """Raise :class:`DoesNotFit` with the arithmetic; passes where the memory is not known."""
    if available_bytes is None or need.total_bytes <= available_bytes:
        return
    raise DoesNotFit(
        f"{name} needs {need.total_bytes // _MIB} MiB ({need.weights_bytes // _MIB} for its "
        f"weights, {need.kv_bytes // _MIB} for the KV cache); {available_bytes // _MIB} MiB "
        "are free.",
        mend="Ask for a smaller context or fewer sequences, or use a smaller model.",
    )


def gguf_kv_shape(metadata: Mapping[str, Any], *, bytes_each: int = F16_BYTES) -> KvShape | None:
    """From a GGUF's metadata; None where it doesn't say, or says it by layer."""
    prefix = f"{metadata.get('general.architecture')}."

    def number(key: str, default: int = 0) -> int:
        value = metadata.get(prefix + key, default)
        return value if isinstance(value, int) else 0

    layers, heads = number("block_count"), number("attention.head_count")
    kv_heads, width = number("attention.head_count_kv", heads), number("embedding_length")
    if not (layers and kv_heads and width and heads):
        return None
    head = width // heads
    values = number("attention.key_length", head) + number("attention.value_length", head)
    return KvShape(layers * kv_heads * values, bytes_each)


def config_kv_shape(config: Mapping[str, Any], *, bytes_each: int) -> KvShape | None:
    """From a Hugging Face ``config.json``; None where it doesn't say."""
    text = config.get("text_config") or config

    def number(key: str, default: int = 0) -> int:
        value = text.get(key)
        return value if isinstance(value, int) and value > 0 else default

    layers, heads = number("num_hidden_layers"), number("num_attention_heads")
    width = number("hidden_size")
    if not (layers and heads and width):
        return None
    kv_heads = number("num_key_value_heads", heads)
    head_dim = number("head_dim", width // heads)
    return KvShape(2 * layers * kv_heads * head_dim, bytes_each)


def available_memory() -> int | None:
    """Bytes that a process could still take, within its cgroup too; None where unknown."""
    limits = [limit for limit in (_free(), _cgroup_room(_CGROUP)) if limit is not None]
    return min(limits, default=None)


def _free() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _free_by_psutil()


def _free_by_psutil() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def _cgroup_room(root: Path) -> int | None:
    """What cgroup v2 leaves to this container; None without a limit."""
    try:
        limit = (root / "memory.max").read_text(encoding="ascii").strip()
        used = int((root / "memory.current").read_text(encoding="ascii"))
        stat = (root / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    pages = dict(line.split() for line in stat.splitlines())
    # Cached file pages are given back when memory runs short.
    return int(limit) - used + int(pages.get("inactive_file", 0))
