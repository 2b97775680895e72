"""Reads and checks a GGUF file's header, before native code sees the file.

Source: the GGUF specification in ggml (docs/gguf.md), versions 2 and 3, little-endian. The check
finds what is missing, truncated or foreign; what only the runtime can find may still end its
process, which is why strangers' files are loaded in a worker.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from overspill.errors import ModelInvalid, ModelNotFound

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 1 << 20
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 2
INT32, STRING, ARRAY = 5, 8, 9

_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]

TENSOR_TYPES: dict[int, tuple[int, int]] = {
    # ggml type: (values in a block, bytes of a block)
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 40),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
    41: (128, 18),  # Q1_0
}


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """An array in the metadata; its values stay in the file, from ``offset`` on (in bytes)."""

    element_type: int
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's place: ``offset`` is in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a checked file says of itself; ``file_size`` is in bytes."""

    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    file_size: int

    @property
    def architecture(self) -> str:
        """``general.architecture``, such as "llama"."""
        return str(self.metadata["general.architecture"])

    @property
    def parameters(self) -> int:
        """Values in all tensors together."""
        return sum(prod(tensor.shape) for tensor in self.tensors)


def read_header(path: Path) -> GgufHeader:
    """Read and check a file.

    Raises :class:`ModelNotFound` when there is no such file, :class:`ModelInvalid` when it is
    foreign, truncated, or says something impossible.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                _invalid(path, "is not a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header()
    except FileNotFoundError as error:
        raise ModelNotFound(f"There is no model at {path}.", mend="Check the path.") from error
    except OSError as error:
        raise ModelNotFound(
            f"{path} cannot be read: {error.strerror}.", mend="Check its permissions."
        ) from error


def read_numbers(path: Path, array: ArrayInfo) -> tuple[Any, ...]:
    """The values of an array of numbers, from a file whose header was checked.

    Raises :class:`ModelInvalid` for an array of anything else.
    """
    layout = _SCALARS.get(array.element_type)
    if layout is None:
        _invalid(path, "has an array of no numbers where numbers are due")
    with path.open("rb") as file:
        file.seek(array.offset)
        data = file.read(layout.size * array.length)
    return tuple(value for (value,) in layout.iter_unpack(data))


class _Reader:
    """Walks through the header; every length is checked against the file before it is used."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._at = len(MAGIC)

    def header(self) -> GgufHeader:
        version = self._number(_U32)
        if version not in VERSIONS:
            self._fail(f"has GGUF version {version}; versions 2 and 3 are known")
        tensors, entries = self._count("tensors"), self._count("metadata entries")
        metadata = {self._string(): self._value() for _ in range(entries)}
        if not isinstance(metadata.get("general.architecture"), str):
            self._fail("names no architecture")
        infos = [self._tensor() for _ in range(tensors)]
        return GgufHeader(version, metadata, self._placed(infos, metadata), self._size)

    def _placed(
        self, infos: list[TensorInfo], metadata: Mapping[str, Any]
    ) -> tuple[TensorInfo, ...]:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            self._fail(f"has an impossible alignment, {alignment!r}")
        start = -(-self._at // alignment) * alignment
        placed = tuple(TensorInfo(i.name, i.shape, i.type, start + i.offset, i.size) for i in infos)
        if len({info.name for info in placed}) != len(placed):
            self._fail("has two tensors of one name")
        end = max((info.offset + info.size for info in placed), default=self._at)
        if end > self._size:
            self._fail(f"is truncated: {self._size} of {end} bytes are there")
        return placed

    def _tensor(self) -> TensorInfo:
        name = self._string()
        dimensions = self._number(_U32)
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self._fail(f"has a tensor of {dimensions} dimensions, {name!r}")
        shape = tuple(self._number(_U64) for _ in range(dimensions))
        kind, offset = self._number(_U32), self._number(_U64)
        if kind not in TENSOR_TYPES:
            self._fail(f"has a tensor of unknown type {kind}, {name!r}")
        block, size = TENSOR_TYPES[kind]
        if 0 in shape or shape[0] % block:
            self._fail(f"has a tensor of impossible shape {shape}, {name!r}")
        return TensorInfo(name, shape, kind, offset, prod(shape) // block * size)

    def _value(self) -> Any:
        kind = self._number(_U32)
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._array(depth=1)
        return self._number(self._scalar(kind))

    def _array(self, depth: int) -> ArrayInfo:
        kind, length = self._number(_U32), self._number(_U64)
        if length > self._size:
            self._fail(f"is truncated in its header, after {self._size} bytes")
        start = self._at
        if kind == STRING:
            for _ in range(length):
                self._skip(self._number(_U64))
        elif kind == ARRAY:
            if depth >= MAX_ARRAY_DEPTH:
                self._fail("nests arrays too deeply")
            for _ in range(length):
                self._array(depth + 1)
        else:
            self._skip(self._scalar(kind).size * length)
        return ArrayInfo(kind, length, start)

    def _scalar(self, kind: int) -> struct.Struct:
        if kind not in _SCALARS:
            self._fail(f"has metadata of unknown type {kind}")
        return _SCALARS[kind]

    def _count(self, what: str) -> int:
        count = int(self._number(_U64))
        if count > MAX_ENTRIES:
            self._fail(f"claims to have {count} {what}")
        return count

    def _string(self) -> str:
        length = self._number(_U64)
        start = self._at
        self._skip(length)
        return self._data[start : self._at].decode("utf-8", "replace")

    def _number(self, layout: struct.Struct) -> Any:
        start = self._at
        self._skip(layout.size)
        return layout.unpack_from(self._data, start)[0]

    def _skip(self, length: int) -> None:
        self._at += length
        if self._at > self._size:
            self._fail(f"is truncated in its header, after {self._size} bytes")

    def _fail(self, what: str) -> NoReturn:
        _invalid(self._path, what)


def _invalid(path: Path, what: str) -> NoReturn:
    raise ModelInvalid(f"{path} {what}.", mend="Fetch the model again, or use another file.")
