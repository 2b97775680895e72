"""RFC 6962 Merkle trees with SHA-256: hashing, proofs, and RFC 9162's verification of them.

Proofs are made over anything that can tell the hash of a complete subtree (:data:`HashAt`), so the
same code works on leaves in memory and on a log's tiles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from overspill.errors import LogInvalid

HashAt: TypeAlias = Callable[[int, int], bytes]
"""``hash_at(level, index)``: the hash of the ``2**level`` leaves from ``index * 2**level`` on."""

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
MAX_PROOF_HASHES: Final = 63


def leaf_hash(data: bytes) -> bytes:
    """MTH of one entry: SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """An inner node: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def complete_hash(hashes: Sequence[bytes]) -> bytes:
    """The root over a power of two of hashes."""
    level = list(hashes)
    while len(level) > 1:
        level = [node_hash(a, b) for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def hashes_of(leaves: Sequence[bytes]) -> HashAt:
    """A :data:`HashAt` over leaf hashes in memory."""

    def hash_at(level: int, index: int) -> bytes:
        return complete_hash(leaves[index << level : (index + 1) << level])

    return hash_at


def tree_root(size: int, hash_at: HashAt) -> bytes:
    """MTH(D[0:size])."""
    return _range_hash(0, size, hash_at) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, hash_at: HashAt) -> tuple[bytes, ...]:
    """PATH(index, D[0:size]) of RFC 6962 section 2.1.1, from the leaf's sibling upwards."""
    if not 0 <= index < size:
        raise _wrong("inclusion_proof", f"an index under {size}", str(index))
    start, end, path = 0, size, []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_range_hash(middle, end, hash_at))
            end = middle
        else:
            path.append(_range_hash(start, middle, hash_at))
            start = middle
    return tuple(reversed(path))


def consistency_proof(old: int, new: int, hash_at: HashAt) -> tuple[bytes, ...]:
    """PROOF(old, D[0:new]) of RFC 6962 section 2.1.2; empty where the sizes are the same."""
    if not 0 < old <= new:
        raise _wrong("consistency_proof", f"a size from 1 to {new}", str(old))
    start, end, path = 0, new, []
    while end > old:
        middle = start + _split(end - start)
        if old <= middle:
            path.append(_range_hash(middle, end, hash_at))
            end = middle
        else:
            path.append(_range_hash(start, middle, hash_at))
            start = middle
    if start:  # else the old tree is a complete subtree of the new one, and known to who asks
        path.append(_range_hash(start, end, hash_at))
    return tuple(reversed(path))


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """RFC 9162 section 2.1.3.2. Raises ``LogInvalid("inclusion_proof")``."""
    if not 0 <= index < size:
        raise _wrong("inclusion_proof", f"an index under {size}", str(index))
    at, last, found = index, size - 1, leaf
    for hash_ in proof:
        if last == 0:
            raise _wrong("inclusion_proof", "a proof as long as the tree is deep", "a longer one")
        if at & 1 or at == last:
            found = node_hash(hash_, found)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, hash_)
        at, last = at >> 1, last >> 1
    if last or found != root:
        raise _wrong("inclusion_proof", "a proof from this entry to the root", "another")


def verify_subtree_inclusion(
    leaf: bytes, index: int, start: int, end: int, proof: Sequence[bytes], root: bytes
) -> None:
    """As :func:`verify_inclusion`, in the subtree ``[start, end)`` of a larger tree.

    A subtree begins at a multiple of the power of two that holds it
    (draft-ietf-plants-merkle-tree-certs). Raises ``LogInvalid("inclusion_proof")``.
    """
    width = end - start
    if start < 0 or width <= 0 or start & (_power_of_two_over(width) - 1):
        raise _wrong("inclusion_proof", "a subtree of the tree", f"[{start}, {end})")
    verify_inclusion(leaf, index - start, width, proof, root)


def verify_consistency(
    old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> None:
    """RFC 9162 section 2.1.4.2. Raises ``LogInvalid("consistency_proof")``.

    Nothing is proven from size 0: every tree extends the empty one, so it is refused
    (``consistency_from_empty``).
    """
    if old == 0:
        raise _wrong("consistency_from_empty", "a proof from a size over 0", "size 0")
    if not 0 < old <= new:
        raise _wrong("consistency_proof", f"sizes that grow, to {new}", f"from {old}")
    if old == new:
        _check_same(proof, old_root, new_root)
        return
    path = (old_root, *proof) if _is_power_of_two(old) else tuple(proof)
    if not path:
        raise _wrong("consistency_proof", "a proof", "nothing")
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old_found = new_found = path[0]
    for hash_ in path[1:]:
        if last == 0:
            raise _wrong("consistency_proof", "a proof as long as the tree is deep", "longer")
        if at & 1 or at == last:
            old_found, new_found = node_hash(hash_, old_found), node_hash(hash_, new_found)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            new_found = node_hash(new_found, hash_)
        at, last = at >> 1, last >> 1
    if last or (old_found, new_found) != (old_root, new_root):
        raise _wrong("consistency_proof", "a proof from one root to the other", "another")


def _check_same(proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    if proof:
        raise _wrong("consistency_proof", "no hash between equal sizes", str(len(proof)))
    if old_root != new_root:
        raise _wrong("consistency_proof", "one root for one size", "two")


def _range_hash(start: int, end: int, hash_at: HashAt) -> bytes:
    width = end - start
    if _is_power_of_two(width):
        level = width.bit_length() - 1
        return hash_at(level, start >> level)
    middle = start + _split(width)
    return node_hash(_range_hash(start, middle, hash_at), _range_hash(middle, end, hash_at))


def _split(width: int) -> int:
    """The largest power of two under ``width``: where RFC 6962 parts a tree."""
    return 1 << ((width - 1).bit_length() - 1)


def _power_of_two_over(width: int) -> int:
    return 1 << (width - 1).bit_length()


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _wrong(reason: str, expected: str, actual: str) -> LogInvalid:
    return LogInvalid(reason, expected=expected, actual=actual)
