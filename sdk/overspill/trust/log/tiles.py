"""Tiles (c2sp.org/tlog-tiles): a log as static files, and the part of its tree that travels.

A tile holds up to 256 hashes of one level of the tree's levels 0, 8, 16...; an entry bundle holds
the entries below a tile of level 0. :class:`Edge` is the right edge of a tree in tiles: enough to
tell its root, to extend it, and to show that a smaller tree is its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from overspill.errors import LogInvalid
from overspill.trust.log.encoding import HASH_BYTES, MAX_SIZE, malformed
from overspill.trust.log.merkle import HashAt, complete_hash, node_hash, tree_root
from overspill.types.binary import ByteReader, prefixed

HEIGHT: Final = 8
WIDTH: Final = 1 << HEIGHT
MAX_ENTRY_BYTES: Final = (1 << 16) - 1
_MAX_LEVEL: Final = 63 // HEIGHT
_EDGE_HEAD: Final = b"OVST\x01"
_MAX_EDGE_TILES: Final = 16
_KEEP_NEIGHBOUR_UNDER: Final = 64


@dataclass(frozen=True, slots=True, order=True)
class TileId:
    """Which tile: its level (in tiles, not in hashes), its index there, and its width."""

    level: int
    index: int
    width: int

    @property
    def path(self) -> str:
        """Where a log serves it, below its prefix."""
        return f"tile/{self.level}/{_path(self.index, self.width)}"

    @property
    def entries_path(self) -> str:
        """Where the entries below a tile of level 0 are."""
        return f"tile/entries/{_path(self.index, self.width)}"


ReadTile = Callable[[TileId], bytes]
"""Reads a tile's bytes: a folder, a web server, memory. Raises ``LogInvalid`` without it."""


def tiles_of(size: int, *, since: int = 0) -> Iterator[TileId]:
    """Every tile of a tree of ``size`` that one of ``since`` entries has not, in all levels."""
    for level in range(_MAX_LEVEL + 1):
        count, known = size >> (HEIGHT * level), since >> (HEIGHT * level)
        for index in range(known // WIDTH, -(-count // WIDTH)):
            width = min(WIDTH, count - index * WIDTH)
            if index * WIDTH + width > known:
                yield TileId(level, index, width)


def split_tile(tile: TileId, data: bytes) -> tuple[bytes, ...]:
    """A tile's hashes. Raises ``LogInvalid("log_truncated")`` for another length."""
    if len(data) != tile.width * HASH_BYTES:
        raise LogInvalid(
            "log_truncated",
            expected=f"{tile.width * HASH_BYTES} bytes in {tile.path}",
            actual=str(len(data)),
        )
    return tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))


def tile_hashes(size: int, read: ReadTile) -> HashAt:
    """A :data:`~overspill.trust.log.merkle.HashAt` over the tiles of a tree of ``size``."""
    known: dict[TileId, tuple[bytes, ...]] = {}

    def hash_at(level: int, index: int) -> bytes:
        tile_level, height = divmod(level, HEIGHT)
        first = index << height
        count = size >> (HEIGHT * tile_level)
        tile_index, at = divmod(first, WIDTH)
        tile = TileId(tile_level, tile_index, min(WIDTH, count - tile_index * WIDTH))
        if tile not in known:
            known[tile] = split_tile(tile, read(tile))
        return complete_hash(known[tile][at : at + (1 << height)])

    return hash_at


def encode_entries(entries: Iterable[bytes]) -> bytes:
    """An entry bundle. Raises ``LogInvalid("entry_too_long")``."""
    entries = list(entries)
    for entry in entries:
        if len(entry) > MAX_ENTRY_BYTES:
            raise LogInvalid(
                "entry_too_long",
                expected=f"an entry of at most {MAX_ENTRY_BYTES} bytes",
                actual=str(len(entry)),
            )
    return b"".join(prefixed(2, entry) for entry in entries)


def decode_entries(data: bytes, count: int) -> tuple[bytes, ...]:
    """The ``count`` entries of a bundle. Raises ``LogInvalid("log_truncated")``."""

    def fail(what: str) -> LogInvalid:
        return LogInvalid("log_truncated", expected=f"a bundle of {count} entries", actual=what)

    reader = ByteReader(data, fail)
    entries = tuple(
        reader.prefixed(2, f"entry {number}", max_bytes=MAX_ENTRY_BYTES) for number in range(count)
    )
    reader.end("the bundle")
    return entries


@dataclass(frozen=True, slots=True)
class Edge:
    """The right edge of a tree: the last tile of each level, and near its end the one before.

    Encoded ``"OVST" | u8 version = 1 | u64 size | u8 count`` and per tile, sorted, ``u8 level |
    u64 index | u16 width | hashes``. There is one encoding, and every hash in it is bound to the
    root.
    """

    size: int
    tiles: tuple[tuple[TileId, tuple[bytes, ...]], ...]

    def encode(self) -> bytes:
        """The one encoding."""
        parts = [_EDGE_HEAD, self.size.to_bytes(8, "big"), bytes((len(self.tiles),))]
        for tile, hashes in self.tiles:
            parts.append(bytes((tile.level,)) + tile.index.to_bytes(8, "big"))
            parts.append(tile.width.to_bytes(2, "big") + b"".join(hashes))
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Edge:
        """Strict decoding. Raises ``LogInvalid("log_malformed")``."""
        reader = ByteReader(data, _bad_edge)
        if reader.take(len(_EDGE_HEAD), "the head") != _EDGE_HEAD:
            raise _bad_edge("another head")
        size = reader.uint(8, "the size")
        count = reader.uint(1, "the number of tiles")
        if count > _MAX_EDGE_TILES or size > MAX_SIZE:
            raise _bad_edge(f"{count} tiles of a tree of {size}")
        edge = cls(size, tuple(_read_tile(reader) for _ in range(count)))
        reader.end("the edge")
        if tuple(tile for tile, _ in edge.tiles) != edge_tiles(size):
            raise _bad_edge("other tiles than such a tree's edge has")
        return edge

    @classmethod
    def read(cls, size: int, read: ReadTile) -> Edge:
        """The edge of a tree of ``size``, from its tiles."""
        return cls(size, tuple((tile, split_tile(tile, read(tile))) for tile in edge_tiles(size)))

    def check(self, root: bytes) -> None:
        """Raises ``LogInvalid("log_root")`` unless every hash here is under ``root``."""
        hash_at = self.hashes()
        for tile, found in self.tiles:
            # A whole tile is told by one hash in the tile above; a partial one by the root.
            above = hash_at(HEIGHT * (tile.level + 1), tile.index) if tile.width == WIDTH else None
            if above is not None and above != complete_hash(found):
                raise _wrong_root()
        if tree_root(self.size, hash_at) != root:
            raise _wrong_root()

    def root_at(self, size: int) -> bytes | None:
        """The root of the first ``size`` entries; None where these tiles do not reach back."""
        if size > self.size:
            return None
        try:
            return tree_root(size, self.hashes())
        except LogInvalid:
            return None

    def hashes(self) -> HashAt:
        """The tree's hashes as far as these tiles tell them; ``LogInvalid`` beyond the edge."""
        by_id = {tile: b"".join(hashes) for tile, hashes in self.tiles}

        def read(tile: TileId) -> bytes:
            if tile not in by_id:
                raise LogInvalid("log_truncated", expected=tile.path, actual="tiles without it")
            return by_id[tile]

        return tile_hashes(self.size, read)


def edge_tiles(size: int) -> tuple[TileId, ...]:
    """The tiles of an :class:`Edge`, sorted.

    The last tile of each level; at level 0 the one before it too while the last has few hashes,
    so that a tree of a little while ago can still be shown to be the beginning of this one.
    """
    last = [
        TileId(level, (count - 1) // WIDTH, (count - 1) % WIDTH + 1)
        for level in range(_MAX_LEVEL + 1)
        if (count := size >> (HEIGHT * level))
    ]
    if last and last[0].width < _KEEP_NEIGHBOUR_UNDER and last[0].index:
        last.append(TileId(0, last[0].index - 1, WIDTH))
    return tuple(sorted(last))


def extended(old: Edge, leaves: Sequence[bytes]) -> HashAt:
    """The hashes near the edge of the tree that ``old`` becomes with more leaf hashes."""
    known = old.hashes()

    def hash_at(level: int, index: int) -> bytes:
        if (index + 1) << level <= old.size:
            return known(level, index)
        if level == 0:
            return leaves[index - old.size]
        return node_hash(hash_at(level - 1, 2 * index), hash_at(level - 1, 2 * index + 1))

    return hash_at


def _read_tile(reader: ByteReader) -> tuple[TileId, tuple[bytes, ...]]:
    tile = TileId(reader.uint(1, "a level"), reader.uint(8, "an index"), reader.uint(2, "a width"))
    if tile.width > WIDTH:
        raise _bad_edge(f"a tile of {tile.width} hashes")
    return tile, tuple(reader.take(HASH_BYTES, "a hash") for _ in range(tile.width))


def _path(index: int, width: int) -> str:
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.append(f"x{index % 1000:03d}")
    partial = "" if width == WIDTH else f".p/{width}"
    return "/".join(reversed(groups)) + partial


def _bad_edge(what: str) -> LogInvalid:
    return malformed("the edge of a tree", what)


def _wrong_root() -> LogInvalid:
    return LogInvalid("log_root", expected="tiles under the checkpoint's root", actual="others")
