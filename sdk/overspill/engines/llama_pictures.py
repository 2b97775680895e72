"""Rows of pictures on llama.cpp's side: vectors decoded where tokens would be."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import llama_cpp as native
import numpy as np

from overspill.engines.backend import BatchRow, Picture

if TYPE_CHECKING:
    import numpy.typing as npt


class PictureRows:
    """Runs rows of pictures over one llama.cpp context, and counts where sequences go on.

    Where images have grid positions a sequence's positions fall behind its tokens.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._shifts: dict[int, int] = {}

    def forget(self, sequence: int, position: int) -> int:
        """The native position of a token from which on a sequence is dropped."""
        if position == 0:
            self._shifts.pop(sequence, None)
        return position + self._shifts.get(sequence, 0)

    def text_rows(self, rows: Sequence[BatchRow]) -> Sequence[BatchRow]:
        """The rows without pictures, at native positions."""
        shifts = self._shifts
        if not shifts and all(row.picture is None for row in rows):
            return rows
        return [
            replace(row, position=row.position + shifts.get(row.sequence, 0))
            for row in rows
            if row.picture is None
        ]

    def run(self, rows: Sequence[BatchRow]) -> int:
        """One ``llama_decode`` for each row with a picture; the first status that is not 0."""
        for row in rows:
            if row.picture is not None:
                status = self._decode(row, row.picture)
                if status != 0:
                    return status
        return 0

    def _decode(self, row: BatchRow, picture: Picture) -> int:
        start, count = row.picture_from, len(row.tokens)
        batch = _PictureBatch(row, picture)
        if picture.sees_itself:
            native.llama_set_causal_attn(self._context, False)
        try:
            status = int(native.llama_decode(self._context, batch.native))
        finally:
            if picture.sees_itself:
                native.llama_set_causal_attn(self._context, True)
        if status == 0 and start + count == len(picture.vectors):
            shift = picture.advance - len(picture.vectors)
            if shift:
                self._shifts[row.sequence] = self._shifts.get(row.sequence, 0) + shift
        return status


class _PictureBatch:
    """A ``llama_batch`` over numpy arrays, which live as long as this."""

    def __init__(self, row: BatchRow, picture: Picture) -> None:
        start, count = row.picture_from, len(row.tokens)
        vectors = np.ascontiguousarray(picture.vectors[start : start + count])
        if picture.positions is None:
            positions = np.arange(row.position, row.position + count, dtype=np.int32)
        else:
            positions = np.ascontiguousarray(picture.positions[:, start : start + count])
        sequences = np.full(count, row.sequence, np.int32)
        pointers = (sequences.ctypes.data + 4 * np.arange(count)).astype(np.uintp)
        lengths, outputs = np.ones(count, np.int32), np.zeros(count, np.int8)
        self._kept = (vectors, positions, sequences, pointers, lengths, outputs)
        batch = native.llama_batch()
        batch.n_tokens = count
        batch.embd = _pointer(vectors, ctypes.c_float)
        batch.pos = _pointer(positions, native.llama_pos)
        batch.n_seq_id = _pointer(lengths, ctypes.c_int32)
        batch.seq_id = _pointer(pointers, ctypes.POINTER(native.llama_seq_id))
        batch.logits = _pointer(outputs, ctypes.c_int8)
        self.native = batch


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
