"""What a model takes on MLX: weights, caches by layer, and what a step works in.

Held against ``mx.get_peak_memory`` of the CPU build, which computes attention in plain steps:
scores of all heads, and their softmax. Metal's fused kernels take less where they exist, so there
the estimate is rather too large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx.utils import tree_flatten

from overspill.engines.memory import MemoryNeed

PREFILL_TOKENS = 256
"""Of a prompt that are computed in one pass."""
GROWTH_TOKENS = 256
"""By which mlx-lm's caches grow: as many may stay unused at a row's end."""
_F32_BYTES = 4


@dataclass(frozen=True, slots=True)
class CacheCost:
    """What one cache takes for a sequence: by token, of at most ``window_tokens``, and at all."""

    token_bytes: int = 0
    window_tokens: int | None = None
    state_bytes: int = 0
    value_bytes: int = _F32_BYTES

    def tokens(self, context_tokens: int) -> int:
        """Tokens that it has room for, with so many computed."""
        if not self.token_bytes:
            return 0
        kept = context_tokens
        if self.window_tokens is not None:
            kept = min(kept, self.window_tokens)
        return kept + GROWTH_TOKENS

    def bytes(self, context_tokens: int) -> int:
        """Bytes with so many tokens computed."""
        return self.state_bytes + self.token_bytes * self.tokens(context_tokens)


@dataclass(frozen=True, slots=True)
class MlxUse:
    """How a model is to be used."""

    context_tokens: int
    max_sequences: int


def cost_of(cache: Any) -> list[CacheCost]:
    """Of one of mlx-lm's caches with a token in it; nothing of it is computed."""
    children = getattr(cache, "caches", None)
    if children is not None:
        return [cost for child in children for cost in cost_of(child)]
    keys = getattr(cache, "keys", None)
    if keys is None:
        return [CacheCost(state_bytes=int(cache.nbytes))]
    arrays: list[Any] = list(dict(tree_flatten([keys, cache.values])).values())
    return [
        CacheCost(
            token_bytes=sum(array.nbytes // array.shape[2] for array in arrays),
            window_tokens=getattr(cache, "max_size", getattr(cache, "chunk_size", None)),
            value_bytes=max(array.itemsize for array in arrays),
        )
    ]


def mlx_need(
    weights_bytes: int,
    costs: Sequence[CacheCost],
    config: Mapping[str, Any],
    outputs_each: int,
    use: MlxUse,
) -> MemoryNeed:
    """All sequences at their full context, and the largest step that they can be in.

    ``outputs_each``: numbers that come out for a sequence, as a vocabulary has tokens.
    """
    caches = [cost.bytes(use.context_tokens) for cost in costs]
    return MemoryNeed(
        weights_bytes=weights_bytes,
        kv_bytes=use.max_sequences * sum(caches),
        compute_bytes=max(_prefill_bytes(costs, config, use), _decode_bytes(costs, config, use)),
        # As computed, as F32, and as numpy's own copy.
        runtime_bytes=3 * use.max_sequences * outputs_each * _F32_BYTES,
    )


def _prefill_bytes(costs: Sequence[CacheCost], config: Mapping[str, Any], use: MlxUse) -> int:
    scores = _score_bytes(costs, config, use)
    value = max((cost.value_bytes for cost in costs), default=_F32_BYTES)
    hidden = _number(config, "intermediate_size", "n_inner") * value
    # A recurrent layer's state is laid out once for each token.
    state = max((cost.state_bytes for cost in costs), default=0)
    return PREFILL_TOKENS * max(scores + hidden, state)


def _decode_bytes(costs: Sequence[CacheCost], config: Mapping[str, Any], use: MlxUse) -> int:
    # A cache that grows, or loses a row, is copied; one layer's at a time.
    largest = max((cost.bytes(use.context_tokens) for cost in costs), default=0)
    return use.max_sequences * (largest + _score_bytes(costs, config, use))


def _score_bytes(costs: Sequence[CacheCost], config: Mapping[str, Any], use: MlxUse) -> int:
    """Of one token: the scores of a layer, and what softmax makes of them."""
    longest = max((c.value_bytes * c.tokens(use.context_tokens) for c in costs), default=0)
    return 2 * _number(config, "num_attention_heads", "n_head") * longest


def _number(config: Mapping[str, Any], *keys: str) -> int:
    text = config.get("text_config") or config
    found = (text.get(key) for key in keys)
    return next((value for value in found if isinstance(value, int) and value > 0), 0)
