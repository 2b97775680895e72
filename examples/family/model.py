"""The llama architecture in PyTorch, as small as it gets: RMSNorm, RoPE, SwiGLU, tied embedding.

Only training needs this file; inference runs the exported weights in llama.cpp or MLX.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.family.config import ModelConfig


def rope_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of shape (context, head_dim), for the rotate-half layout."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(config.context).float(), config.rope_theta**-half)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to ``x`` of shape (batch, heads, time, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Block(nn.Module):
    """One layer; query, key and value are one matrix, as are gate and up.

    At first a layer writes nothing, so that a token's own identity is not drowned.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.eps = config.heads, config.norm_eps
        d, ff = config.width, config.hidden
        self.attention_norm = nn.Parameter(torch.ones(d))
        self.mlp_norm = nn.Parameter(torch.ones(d))
        self.qkv = nn.Parameter(torch.randn(3 * d, d) * d**-0.5)
        self.attention_out = nn.Parameter(torch.zeros(d, d))
        self.gate_up = nn.Parameter(torch.randn(2 * ff, d) * d**-0.5)
        self.down = nn.Parameter(torch.zeros(d, ff))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map (batch, time, width) to the same shape."""
        batch, time, width = x.shape
        h = F.rms_norm(x, (width,), self.attention_norm, self.eps)
        qkv = F.linear(h, self.qkv).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True
        )
        x = x + F.linear(mixed.transpose(1, 2).reshape(batch, time, width), self.attention_out)
        h = F.rms_norm(x, (width,), self.mlp_norm, self.eps)
        gate, up = F.linear(h, self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)


class Llama(nn.Module):
    """The whole model; the embedding doubles as the output matrix."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.randn(config.vocabulary, config.width) * 0.1)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.Parameter(torch.full((config.width,), 0.5))
        cos, sin = rope_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Map token ids (batch, time) to normed states (batch, time, width)."""
        time = tokens.shape[1]
        cos, sin = self.cos[:time], self.sin[:time]
        x = F.embedding(tokens, self.embedding)
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.rms_norm(x, (x.shape[-1],), self.final_norm, self.config.norm_eps)

    def compile_hidden(self) -> None:
        """Fuse the layers by torch.compile; any batch and length then run the same code."""
        self.hidden = torch.compile(self.hidden, dynamic=True)  # type: ignore[method-assign]  # as torch shows

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (batch, time) to logits (batch, time, vocabulary)."""
        return F.linear(self.hidden(tokens), self.embedding)

    def loss(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean of the next-token losses, in nats.

        ``tokens`` is (batch, time + 1); ``weights`` (batch, time) holds each target's weight.
        Logits are made for the weighted positions only, which saves most of the output matrix.
        """
        states = self.hidden(tokens[:, :-1])
        chosen = weights > 0
        logits = F.linear(states[chosen], self.embedding)
        losses = F.cross_entropy(logits, tokens[:, 1:][chosen], reduction="none")
        picked = weights[chosen]
        return (losses * picked).sum() / picked.sum()
