"""A log as a folder of static files (c2sp.org/tlog-tiles), which any web server can serve.

One writer at a time, by a file lock. New tiles are written first and the checkpoint last, each
atomically: after a crash the log is what its checkpoint says, and what was written beyond it is
written again by the next append.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from overspill.errors import BusyError, ConfigurationError, LogInvalid, MissingExtra
from overspill.releasing.files import read_file, write_atomically
from overspill.trust.log.checkpoint import Checkpoint, SignedCheckpoint, open_checkpoint
from overspill.trust.log.encoding import HASH_BYTES
from overspill.trust.log.merkle import consistency_proof, inclusion_proof, leaf_hash, tree_root
from overspill.trust.log.note import Note, NoteSignature, SignerKey, VerifierKey, sign_note
from overspill.trust.log.proof import TlogProof
from overspill.trust.log.tiles import (
    HEIGHT,
    MAX_ENTRY_BYTES,
    WIDTH,
    Edge,
    TileId,
    decode_entries,
    encode_entries,
    extended,
    split_tile,
    tile_hashes,
    tiles_of,
)

CHECKPOINT: Final = "checkpoint"
_LOCK: Final = ".lock"
_LOCK_TIMEOUT_S: Final = 10.0


class LogFolder:
    """The log in ``folder``, whose checkpoints ``key`` signs; ``origin`` defaults to its name.

    Methods raise ``LogInvalid`` for files that are missing, cut short or not what the checkpoint
    stands for: nothing is ever appended to such a log.
    """

    def __init__(self, folder: Path, key: VerifierKey, origin: str | None = None) -> None:
        self._folder = folder
        self._key = key
        self._origin = origin or key.name

    def checkpoint(self) -> SignedCheckpoint | None:
        """The current one, its signature verified; None in an empty folder."""
        path = self._folder / CHECKPOINT
        if not path.exists():
            if (self._folder / "tile/0").exists():
                raise LogInvalid(
                    "log_truncated", expected=f"a checkpoint in {self._folder}", actual="none"
                )
            return None
        return open_checkpoint(path.read_bytes(), self._origin, self._key)

    def append(self, entries: Sequence[bytes], signer: SignerKey) -> SignedCheckpoint:
        """Adds entries and publishes a checkpoint that ``signer`` signed.

        Raises ``BusyError`` while another process writes.
        """
        for entry in entries:
            if len(entry) > MAX_ENTRY_BYTES:
                encode_entries((entry,))  # raises
        with self._lock():
            old = self._checked_edge()
            hash_at = extended(old, [leaf_hash(entry) for entry in entries])
            size = old.size + len(entries)
            for tile in tiles_of(size, since=old.size):
                self._write_tile(tile, [hash_at(HEIGHT * tile.level, i) for i in _range(tile)])
                if tile.level == 0:
                    self._write_entries(tile, entries, old.size)
            head = Checkpoint(self._origin, size, tree_root(size, hash_at))
            note = sign_note(head.text(), signer)
            write_atomically(self._folder / CHECKPOINT, note.encode())
        return open_checkpoint(note.encode(), self._origin, self._key)

    def find(self, entry: bytes) -> int | None:
        """The first index of an entry; None if the log has no such one."""
        signed = self.checkpoint()
        wanted = leaf_hash(entry)
        for tile in tiles_of(signed.size if signed else 0):
            if tile.level == 0:
                hashes = split_tile(tile, self.read_tile(tile))
                if wanted in hashes:
                    return tile.index * WIDTH + hashes.index(wanted)
        return None

    def prove(self, index: int) -> TlogProof:
        """The proof of an entry under the current checkpoint, with the tree's edge beside it."""
        signed = self._present()
        path = inclusion_proof(index, signed.size, tile_hashes(signed.size, self.read_tile))
        edge = Edge.read(signed.size, self.read_tile)
        edge.check(signed.root)
        return TlogProof(index, path, signed.note.encode(), edge.encode())

    def consistency(self, old_size: int) -> tuple[bytes, ...]:
        """The proof from ``old_size`` to the current checkpoint; empty from 0."""
        size = self._present().size
        if old_size == 0:
            return ()
        return consistency_proof(old_size, size, tile_hashes(size, self.read_tile))

    def add_cosignatures(self, lines: Sequence[NoteSignature]) -> SignedCheckpoint:
        """Publishes the checkpoint with cosignatures, each in place of an older one by its key."""
        with self._lock():
            note = self._present().note
            new = {(line.name, line.key_id) for line in lines}
            kept = [line for line in note.signatures if (line.name, line.key_id) not in new]
            note = Note(note.text, (*kept, *lines))
            write_atomically(self._folder / CHECKPOINT, note.encode())
        return open_checkpoint(note.encode(), self._origin, self._key)

    def read_tile(self, tile: TileId) -> bytes:
        """A tile's bytes; a partial one may have been replaced by the whole."""
        data, _ = self._read(tile, lambda t: t.path)
        return data[: HASH_BYTES * tile.width]

    def entries(self, tile: TileId) -> tuple[bytes, ...]:
        """The entries below a tile of level 0, true to its hashes."""
        data, width = self._read(tile, lambda t: t.entries_path)
        entries = decode_entries(data, width)[: tile.width]
        if tuple(map(leaf_hash, entries)) != split_tile(tile, self.read_tile(tile)):
            raise LogInvalid(
                "log_root", expected=f"the entries of {tile.path}", actual=tile.entries_path
            )
        return entries

    def _read(self, tile: TileId, path: Callable[[TileId], str]) -> tuple[bytes, int]:
        """The file of a tile, or of the whole one that has replaced it, and its width."""
        whole = TileId(tile.level, tile.index, WIDTH)
        present = next((t for t in (tile, whole) if (self._folder / path(t)).is_file()), None)
        if present is None:
            raise LogInvalid(
                "log_truncated", expected=f"the file {path(tile)}", actual="no such file"
            )
        return read_file(self._folder / path(present), "The log's file"), present.width

    def _checked_edge(self) -> Edge:
        signed = self.checkpoint()
        edge = Edge.read(signed.size if signed else 0, self.read_tile)
        if signed is not None:
            edge.check(signed.root)
        return edge

    def _write_tile(self, tile: TileId, hashes: Sequence[bytes]) -> None:
        write_atomically(self._folder / tile.path, b"".join(hashes))

    def _write_entries(self, tile: TileId, new: Sequence[bytes], old_size: int) -> None:
        start = tile.index * WIDTH
        held = max(0, old_size - start)
        old = self.entries(TileId(0, tile.index, held)) if held else ()
        first = max(start, old_size) - old_size
        bundle = encode_entries((*old, *new[first : start + tile.width - old_size]))
        write_atomically(self._folder / tile.entries_path, bundle)

    def _present(self) -> SignedCheckpoint:
        signed = self.checkpoint()
        if signed is None:
            raise ConfigurationError(
                f"There is no log in {self._folder}.", mend="Append to it first."
            )
        return signed

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            from filelock import FileLock, Timeout
        except ImportError as error:
            raise MissingExtra("Writing a log", "release") from error
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._folder / _LOCK, timeout=_LOCK_TIMEOUT_S):
                yield
        except Timeout as error:
            raise BusyError(
                f"Another process writes the log in {self._folder}.", mend="Try again later."
            ) from error
        except OSError as error:
            raise ConfigurationError(
                f"The log in {self._folder} cannot be written: {error.strerror}.",
                mend="Check the folder and its permissions.",
            ) from error


def _range(tile: TileId) -> range:
    return range(tile.index * WIDTH, tile.index * WIDTH + tile.width)
