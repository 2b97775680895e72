"""Put the two heads in place that copying from the prompt is built on.

A head of layer 0 looks one token back and notes that token's identity; a head of layer 1 finds
where the current token occurred before (by those notes) and proposes what followed. Training
discovers such heads only after many millions of tokens, more than a small budget has; primed,
it only has to refine them. Only the new model's weights are set; the architecture stays llama.
"""

from __future__ import annotations

import torch
from torch import Tensor

from examples.family.model import Block, Llama

SHARP_PAIRS = 8  # of the fastest-turning rotation pairs, which tell neighbours apart
SLOW_PAIRS = 8  # from this pair on rotations are slow enough to leave contents comparable


def _head_rows(block: Block, head: int, part: int) -> tuple[slice, Tensor]:
    """Return where a head's rows lie in ``qkv`` (part 0 query, 1 key, 2 value), and the norm."""
    size = block.qkv.shape[1] // block.heads
    start = part * block.qkv.shape[1] + head * size
    return slice(start, start + size), block.attention_norm


def _set(block: Block, head: int, part: int, rows: Tensor) -> None:
    where, norm = _head_rows(block, head, part)
    block.qkv[where] = rows / norm  # the norm's weights are divided out


def _orthonormal(rows: int, columns: int, avoid: Tensor) -> Tensor:
    """Return random orthonormal rows, orthogonal to the unit vector ``avoid`` as well."""
    raw = torch.randn(rows, columns)
    raw = raw - torch.outer(raw @ avoid, avoid)
    return torch.linalg.qr(raw.T)[0].T.contiguous()


def _unit(states: Tensor) -> Tensor:
    return states / states.pow(2).mean(-1, keepdim=True).sqrt()


@torch.no_grad()
def prime(model: Llama, heads: int = 2, strength: float = 1.0, common: float = 1.0) -> None:
    """Prime ``heads`` pairs of heads in layers 0 and 1.

    ``common`` times the embeddings' root mean square is added to every embedding along one
    direction: all logits shift alike, so predictions stay, and it gives the first head
    something that is the same at every position.
    """
    config, size = model.config, model.config.head_dim
    scale = float(model.embedding.pow(2).mean().sqrt())
    direction = model.embedding.mean(0)
    direction = direction / direction.norm()
    if common:
        model.embedding += common * scale * config.width**0.5 * direction
    states = _unit(model.embedding)
    level = float((states @ direction).mean())
    first, second = model.blocks[0], model.blocks[1]
    assert isinstance(first, Block)
    assert isinstance(second, Block)
    for head in range(heads):
        notes = _orthonormal(size, config.width, direction)
        room = _orthonormal(size, config.width, direction)
        _look_back(model, first, head, direction / level)
        _set(first, head, 2, notes)
        columns = slice(head * size, (head + 1) * size)
        first.attention_out[:, columns] = room.T * scale * strength
        _find_again(model, second, head, notes, room)
        echo = _orthonormal(size, config.width, direction)
        _set(second, head, 2, echo)
        second.attention_out[:, columns] = echo.T * scale * strength * 3.0


def _look_back(model: Llama, block: Block, head: int, reader: Tensor) -> None:
    """Make a head attend one token back, whatever the tokens are."""
    half = model.config.head_dim // 2
    key = torch.zeros(2 * half)
    key[:SHARP_PAIRS] = 6.0
    turn = model.cos[1], model.sin[1]  # the rotation of one position
    flipped = torch.cat((-key[half:], key[:half]))
    query = key * turn[0] - flipped * turn[1]  # turned back by one
    _set(block, head, 0, torch.outer(query, reader))
    _set(block, head, 1, torch.outer(key, reader))


def _find_again(model: Llama, block: Block, head: int, notes: Tensor, room: Tensor) -> None:
    """Make a head attend where the note on the previous token equals the current token."""
    size = model.config.head_dim
    half = size // 2
    slow = [*range(SLOW_PAIRS, half), *range(half + SLOW_PAIRS, size)]
    query, key = torch.zeros(size, notes.shape[1]), torch.zeros(size, notes.shape[1])
    query[slow] = notes[: len(slow)] * 3.0
    key[slow] = room[: len(slow)] * 3.0
    _set(block, head, 0, query)
    _set(block, head, 1, key)
