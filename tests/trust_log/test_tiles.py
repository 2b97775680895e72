"""Tiles, entry bundles and the edge of a tree: paths as specified, and nothing unbound."""

from __future__ import annotations

import contextlib
import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.errors import LogInvalid
from overspill.trust.log.merkle import hashes_of, leaf_hash, tree_root
from overspill.trust.log.tiles import (
    MAX_ENTRY_BYTES,
    WIDTH,
    Edge,
    TileId,
    decode_entries,
    edge_tiles,
    encode_entries,
    extended,
    split_tile,
    tile_hashes,
    tiles_of,
)

LEAVES = [leaf_hash(number.to_bytes(4, "big")) for number in range(70_000)]
ALL = functools.cache(hashes_of(LEAVES))
sizes = st.sampled_from([1, 2, 63, 255, 256, 257, 300, 319, 320, 511, 512, 65_536, 65_537, 70_000])


def read(tile: TileId) -> bytes:
    """A tile of the tree in memory."""
    first = tile.index * WIDTH
    return b"".join(ALL(8 * tile.level, i) for i in range(first, first + tile.width))


def test_the_specifications_example_of_70_000_entries():
    tiles = list(tiles_of(70_000))
    by_level = {level: [t for t in tiles if t.level == level] for level in (0, 1, 2, 3)}
    assert [len(by_level[level]) for level in by_level] == [274, 2, 1, 0]
    assert [by_level[level][-1].width for level in (0, 1, 2)] == [112, 17, 1]
    assert [t.width for t in tiles_of(256)] == [256, 1]


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (TileId(0, 1234067, 256), "tile/0/x001/x234/067"),
        (TileId(3, 0, 256), "tile/3/000"),
        (TileId(0, 273, 112), "tile/0/273.p/112"),
        (TileId(1, 1000, 1), "tile/1/x001/000.p/1"),
    ],
)
def test_paths_are_the_specifications(tile, path):
    assert tile.path == path
    assert TileId(0, 5, 256).entries_path == "tile/entries/005"


@given(st.integers(0, 1000), st.integers(0, 300))
def test_new_tiles_are_those_that_the_smaller_tree_has_not(since, more):
    old, new = set(tiles_of(since)), set(tiles_of(since + more))
    assert set(tiles_of(since + more, since=since)) == new - old


@pytest.mark.parametrize("size", [1, 255, 256, 257, 65_536, 70_000])
def test_tiles_tell_the_root(size):
    assert tree_root(size, tile_hashes(size, read)) == tree_root(size, ALL)


@given(sizes, st.data())
def test_an_edge_round_trips_and_tells_its_root(size, data):
    edge = Edge.read(size, read)
    edge.check(tree_root(size, ALL))
    assert Edge.decode(edge.encode()) == edge
    assert edge.root_at(size) == tree_root(size, ALL)
    assert edge.root_at(size + 1) is None
    recent = data.draw(st.integers(max(1, size - 64), size))
    assert edge.root_at(recent) == tree_root(recent, ALL)
    with pytest.raises(LogInvalid) as caught:
        edge.check(bytes(32))
    assert caught.value.reason == "log_root"


@pytest.mark.parametrize(("size", "step"), [(1, 1), (3, 1), (66, 1), (257, 61), (320, 61)])
def test_every_flipped_bit_of_an_edge_is_refused(size, step):
    good, root = Edge.read(size, read).encode(), tree_root(size, ALL)
    for at in range(0, len(good), step):
        flipped = bytearray(good)
        flipped[at] ^= 1
        with pytest.raises(LogInvalid):
            Edge.decode(bytes(flipped)).check(root)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_edge_or_refused(data):
    for candidate in (data, b"OVST\x01" + data):
        with contextlib.suppress(LogInvalid):
            Edge.decode(candidate)


@pytest.mark.parametrize(
    "head",
    [
        b"OVST\x02",
        b"OVST\x01" + (2**63).to_bytes(8, "big") + b"\x00",
        b"OVST\x01" + bytes(8) + b"\x11",
        b"OVST\x01" + bytes(8) + b"\x00" + b"x",
        b"OVST\x01" + (1).to_bytes(8, "big") + b"\x01" + bytes(9) + b"\xff\xff",
    ],
)
def test_an_edge_that_claims_too_much_is_refused_before_it_is_read(head):
    with pytest.raises(LogInvalid):
        Edge.decode(head)


def test_what_lies_beyond_the_edge_is_unknown():
    edge = Edge.read(70_000, read)
    assert edge.root_at(1) is None
    assert edge.root_at(65_536) == tree_root(65_536, ALL)


@given(st.integers(0, 600), st.integers(0, 300))
def test_a_tree_grows_from_its_edge_alone(size, more):
    grown = extended(Edge.read(size, read), LEAVES[size : size + more])
    assert tree_root(size + more, grown) == tree_root(size + more, ALL)
    for tile in tiles_of(size + more, since=size):
        first = tile.index * WIDTH
        for i in range(first, first + tile.width):
            assert grown(8 * tile.level, i) == ALL(8 * tile.level, i)


def test_edges_hold_at_most_a_few_hundred_hashes():
    for size in (1, 255, 256, 300, 1000, 65_536, 70_000, 10**9, 2**63 - 1):
        assert sum(tile.width for tile in edge_tiles(size)[:1]) <= WIDTH
        assert len(edge_tiles(size)) <= 9
    assert edge_tiles(0) == ()


def test_a_tile_of_another_length_is_truncated():
    with pytest.raises(LogInvalid) as caught:
        split_tile(TileId(0, 0, 2), bytes(63))
    assert caught.value.reason == "log_truncated"


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_entry_bundles_round_trip(entries):
    data = encode_entries(entries)
    assert decode_entries(data, len(entries)) == tuple(entries)
    for count in (len(entries) + 1, len(entries) - 1):
        if count >= 0:
            with pytest.raises(LogInvalid) as caught:
                decode_entries(data, count)
            assert caught.value.reason == "log_truncated"


def test_an_entry_has_at_most_64_kib():
    assert len(encode_entries([bytes(MAX_ENTRY_BYTES)])) == MAX_ENTRY_BYTES + 2
    with pytest.raises(LogInvalid) as caught:
        encode_entries([bytes(MAX_ENTRY_BYTES + 1)])
    assert caught.value.reason == "entry_too_long"
