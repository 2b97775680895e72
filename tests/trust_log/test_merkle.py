"""RFC 6962 trees: others' vectors, and every proof of every small tree against its definition."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import LogInvalid
from overspill.trust.log.merkle import (
    EMPTY_ROOT,
    complete_hash,
    consistency_proof,
    hashes_of,
    inclusion_proof,
    leaf_hash,
    node_hash,
    tree_root,
    verify_consistency,
    verify_inclusion,
    verify_subtree_inclusion,
)

LEAVES = [leaf_hash(bytes([number])) for number in range(70)]


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


@pytest.mark.parametrize("size", range(len(LEAVES)))
def test_roots_are_the_rfcs(size):
    assert tree_root(size, hashes_of(LEAVES)) == mth(LEAVES[:size])


def test_the_empty_tree_and_one_leaf():
    assert EMPTY_ROOT.hex().startswith("e3b0c442")
    assert (
        leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    )
    assert complete_hash([LEAVES[0], LEAVES[1]]) == node_hash(LEAVES[0], LEAVES[1])


@given(st.integers(1, 69), st.data())
def test_an_inclusion_proof_holds_for_its_leaf_place_size_and_root_alone(size, data):
    index = data.draw(st.integers(0, size - 1))
    root = mth(LEAVES[:size])
    proof = inclusion_proof(index, size, hashes_of(LEAVES))
    verify_inclusion(LEAVES[index], index, size, proof, root)
    verify_subtree_inclusion(LEAVES[index], index, 0, size, proof, root)
    other = data.draw(st.integers(0, size + 1).filter(lambda n: n != index))
    wrong = [
        (LEAVES[69], index, size, proof, root),
        (LEAVES[index], other, size, proof, root),
        (LEAVES[index], index, size, (*proof, root), root),
        (LEAVES[index], index, size, proof, LEAVES[69]),
        (LEAVES[index], -1, size, proof, root),
    ]
    if proof:
        wrong.append((LEAVES[index], index, size, proof[:-1], root))
        wrong.append((LEAVES[index], index, size, (LEAVES[69], *proof[1:]), root))
    for case in wrong:
        with pytest.raises(LogInvalid) as caught:
            verify_inclusion(*case)
        assert caught.value.reason == "inclusion_proof"


@given(st.integers(1, 69), st.data())
def test_a_consistency_proof_holds_for_its_two_trees_alone(new, data):
    old = data.draw(st.integers(1, new))
    proof = consistency_proof(old, new, hashes_of(LEAVES))
    old_root, new_root = mth(LEAVES[:old]), mth(LEAVES[:new])
    verify_consistency(old, new, proof, old_root, new_root)
    wrong = [
        (old, new, (*proof, LEAVES[0]), old_root, new_root),
        (old, new, proof, LEAVES[69], new_root),
        (old, new, proof, old_root, LEAVES[69]),
    ]
    if proof:
        wrong.append((old, new, proof[:-1], old_root, new_root))
        wrong.append((old, new, (), old_root, new_root))
    for case in wrong:
        with pytest.raises(LogInvalid) as caught:
            verify_consistency(*case)
        assert caught.value.reason == "consistency_proof"


def test_t55_consistency_from_size_0():
    """The textbook algorithm takes it: any tree extends the empty one, so it proves nothing."""
    proof = consistency_proof(1, 8, hashes_of(LEAVES))
    for given_proof, root in (((), EMPTY_ROOT), (proof, EMPTY_ROOT), (proof, LEAVES[0])):
        with pytest.raises(LogInvalid) as caught:
            verify_consistency(0, 8, given_proof, root, mth(LEAVES[:8]))
        assert caught.value.reason == "consistency_from_empty"


@pytest.mark.parametrize(("old", "new"), [(-1, 4), (5, 4), (0, 4)])
def test_no_proof_is_made_of_what_is_none(old, new):
    with pytest.raises(LogInvalid):
        consistency_proof(old, new, hashes_of(LEAVES))
    with pytest.raises(LogInvalid):
        verify_consistency(old, new, (), LEAVES[0], LEAVES[0])
    with pytest.raises(LogInvalid):
        inclusion_proof(new, new, hashes_of(LEAVES))


@pytest.mark.parametrize(("start", "end"), [(-8, 0), (8, 8), (9, 8), (1, 3), (4, 12), (2, 5)])
def test_a_subtree_begins_where_subtrees_begin(start, end):
    with pytest.raises(LogInvalid):
        verify_subtree_inclusion(LEAVES[0], start, start, end, (), LEAVES[0])


def unhash(text: str) -> bytes:
    return base64.b64decode(text)


def run_vector(kind: str, v: dict) -> None:
    proof = [unhash(one) for one in v["proof"] or ()]
    if kind == "consistency":
        roots = unhash(v["root1"]), unhash(v["root2"])
        verify_consistency(v["size1"], v["size2"], proof, *roots)
    elif kind == "inclusion":
        leaf, root = unhash(v["leafHash"]), unhash(v["root"])
        verify_inclusion(leaf, v["leafIdx"], v["treeSize"], proof, root)
    else:
        leaf, root = unhash(v["leafHash"]), unhash(v["root"])
        verify_subtree_inclusion(leaf, v["leafIdx"], v["start"], v["end"], proof, root)


@pytest.mark.parametrize(
    ("kind", "count"), [("inclusion", 49), ("consistency", 43), ("subtreeinclusion", 164)]
)
def test_others_vectors_are_judged_as_they_say(vectors: Path, kind, count):
    files = sorted((vectors / "merkle" / kind).rglob("*.json"))
    assert len(files) == count
    for file in files:
        vector = json.loads(file.read_text())
        try:
            run_vector(kind, vector)
            refused = False
        except LogInvalid:
            refused = True
        assert refused == vector["wantErr"], f"{file.parent.name}/{file.name}: {vector['desc']}"
