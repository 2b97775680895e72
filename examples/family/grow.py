"""Grow a trained model into a larger one that computes the same function at first.

Steps are cheap in a small model, so ``river`` starts from a run at brook's size: added channels of
the residual stream start at zero, added heads, hidden units and layers write nothing. Training then
puts them to use (as in Net2Net, Chen et al. 2016, arXiv 1511.05641).
``python -m examples.family.grow SMALL.pt river LARGE.pt``.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from examples.family.config import MODELS, ModelConfig
from examples.family.model import Llama

State = dict[str, Tensor]


def _place(large: Tensor, small: Tensor) -> Tensor:
    """Put ``small`` into the upper left corner of ``large``; what is left of its columns is zero.

    Columns read the residual stream, whose added channels start at zero: rows of added units may
    keep their random start there, but rows that existed must not read anything new.
    """
    rows, columns = small.shape
    large[:rows] = 0
    large[:rows, :columns] = small
    return large


def _placed_stack(large: Tensor, small: Tensor, count: int) -> Tensor:
    """Place each of ``count`` stacked matrices."""
    pairs = zip(large.chunk(count), small.chunk(count), strict=True)
    return torch.cat([_place(a, b) for a, b in pairs])


def layer_map(small: int, large: int) -> dict[int, int]:
    """Return which large layer continues which small one: evenly spread, first to first."""
    return {round(i * large / small): i for i in range(small)}


def _grow_block(large: State, small: State, shrink: float) -> State:
    """Grow one layer; ``shrink`` undoes what the wider mean does to the norms."""
    out = dict(large)
    for name in ("attention_norm", "mlp_norm"):
        out[name] = torch.full_like(large[name], shrink)
        out[name][: small[name].shape[0]] = small[name] * shrink
    out["qkv"] = _placed_stack(large["qkv"], small["qkv"], 3)
    out["gate_up"] = _placed_stack(large["gate_up"], small["gate_up"], 2)
    for name in ("attention_out", "down"):  # added heads and units write nothing yet
        out[name] = torch.zeros_like(large[name])
        rows, columns = small[name].shape
        out[name][:rows, :columns] = small[name]
    return out


def grow(small: State, before: ModelConfig, after: ModelConfig) -> State:
    """Return weights of shape ``after`` that compute what ``small`` computes."""
    if before.head_dim != after.head_dim or before.vocabulary != after.vocabulary:
        raise ValueError("heads and vocabulary must agree")
    large = Llama(after).state_dict()
    shrink = (before.width / after.width) ** 0.5
    out: State = {
        "embedding": torch.zeros_like(large["embedding"]),
        "final_norm": torch.full_like(large["final_norm"], shrink),
    }
    out["embedding"][:, : before.width] = small["embedding"]
    out["final_norm"][: before.width] = small["final_norm"] * shrink
    sources = layer_map(before.layers, after.layers)
    for layer in range(after.layers):
        prefix = f"blocks.{layer}."
        block = {k.removeprefix(prefix): v for k, v in large.items() if k.startswith(prefix)}
        if layer in sources:
            old = f"blocks.{sources[layer]}."
            source = {k.removeprefix(old): v for k, v in small.items() if k.startswith(old)}
            block = _grow_block(block, source, shrink)
        else:
            block["attention_out"] = torch.zeros_like(block["attention_out"])
            block["down"] = torch.zeros_like(block["down"])
        out |= {prefix + name: tensor for name, tensor in block.items()}
    return out


def main() -> None:
    """Write a checkpoint of the larger model that continues the smaller one's place in the data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("small", type=Path)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    content = torch.load(args.small, map_location="cpu")
    after = MODELS[args.model]
    weights = grow(content["model"], ModelConfig(**content["config"]), after)
    # No optimizer state: the trainer then warms up afresh.
    state = {**content["state"], "step": 0, "seconds": 0.0}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"config": asdict(after), "model": weights, "state": state}, args.out)
    print(f"grown at {state}")


if __name__ == "__main__":
    main()
