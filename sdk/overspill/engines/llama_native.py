"""What the llama.cpp backend keeps on the native side: its batch, its abort flag and its log."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from typing import Any

import llama_cpp as native
import numpy as np

from overspill.engines.backend import BatchRow

_LOG_ERROR = 4
_MAX_ERRORS = 8


class AbortFlag:
    """Tells llama.cpp to stop, without Python being called back in the middle of a batch.

    The callback is C's own ``strlen`` and its argument a buffer: empty means go on, one
    character means stop. A Python callback would take the GIL for every operation of the graph.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL("msvcrt") if os.name == "nt" else ctypes.CDLL(None)
        self._text = ctypes.create_string_buffer(2)
        self.callback = ctypes.cast(library.strlen, native.ggml_abort_callback)
        self.data = ctypes.cast(self._text, ctypes.c_void_p)

    def set(self) -> None:
        """Stop."""
        self._text[0] = b"\1"

    def clear(self) -> None:
        """Go on."""
        self._text[0] = b"\0"


class NativeBatch:
    """A ``llama_batch`` seen through numpy: filled without a Python loop over tokens."""

    def __init__(self, size: int) -> None:
        self.native = native.llama_batch_init(size, 0, 1)
        view = np.ctypeslib.as_array
        self._tokens = view(self.native.token, (size,))
        self._positions = view(self.native.pos, (size,))
        self._outputs = view(self.native.logits, (size,))
        view(self.native.n_seq_id, (size,))[:] = 1
        # Each token has a pointer to its own list of sequences: let them all point into one array.
        address = ctypes.cast(self.native.seq_id, ctypes.POINTER(ctypes.c_size_t))
        self._pointers = view(address, (size,))
        self._allocated = self._pointers.copy()
        self._sequences = np.zeros(size, np.int32)
        self._pointers[:] = self._sequences.ctypes.data + 4 * np.arange(size, dtype=np.uintp)

    def fill(self, rows: Sequence[BatchRow]) -> int:
        """Write the rows; returns how many rows of logits they want."""
        if all(len(row.tokens) == 1 for row in rows):
            return self._fill_single(rows)
        at = wanted = 0
        for row in rows:
            end = at + len(row.tokens)
            self._tokens[at:end] = row.tokens
            self._positions[at:end] = np.arange(row.position, row.position + end - at)
            self._sequences[at:end] = row.sequence
            self._outputs[at:end] = 0
            if row.wants_logits:
                self._outputs[end - row.outputs : end] = 1
                wanted += row.outputs
            at = end
        self.native.n_tokens = at
        return wanted

    def _fill_single(self, rows: Sequence[BatchRow]) -> int:
        """As most steps are: a token a row."""
        count = len(rows)
        outputs = [row.wants_logits for row in rows]
        self._tokens[:count] = [row.tokens[0] for row in rows]
        self._positions[:count] = [row.position for row in rows]
        self._sequences[:count] = [row.sequence for row in rows]
        self._outputs[:count] = outputs
        self.native.n_tokens = count
        return sum(outputs)

    def free(self) -> None:
        """Give llama.cpp its own pointers back before it frees them."""
        self._pointers[:] = self._allocated
        native.llama_batch_free(self.native)


class NativeLog:
    """Keeps llama.cpp's errors instead of writing them to stderr."""

    def __init__(self) -> None:
        self._errors: list[str] = []
        self.callback = native.llama_log_callback(self._note)
        native.llama_log_set(self.callback, ctypes.c_void_p(0))

    def _note(self, level: int, text: bytes, _: Any) -> None:
        if level == _LOG_ERROR and len(self._errors) < _MAX_ERRORS:
            self._errors.append(text.decode("utf-8", "replace").strip())

    def take(self) -> str:
        """The first error line since the last call: the cause, where the others repeat it."""
        said = self._errors[0].rstrip(".") if self._errors else ""
        self._errors.clear()
        return said


@functools.cache
def native_log() -> NativeLog:
    """The one log: llama.cpp has one log callback for the whole process."""
    return NativeLog()
