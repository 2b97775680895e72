"""NVIDIA's GPU attestation report: an SPDM 1.1 GET_MEASUREMENTS request followed by the response
(DMTF DSP0274), little-endian, read strictly.

Request: ``0x11 0xE0 param1 param2 | nonce 32 | slot``. Response: ``0x11 0x60 param1 param2 |
blocks u8 | record length u24 | measurement blocks | nonce 32 | opaque length u16 | opaque |
signature 96``.
A block is ``index u8 | 1 | size u16 | type u8 | size u16 | value``; opaque data are NVIDIA's fields
``type u16 | size u16 | value``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from overspill.errors import EvidenceRejected
from overspill.trust.base import rejected
from overspill.types.binary import ByteReader

MAX_BYTES: Final = 64 << 10
SIGNATURE_BYTES: Final = 96
DRIVER_VERSION: Final = 3
VBIOS_VERSION: Final = 6
PROJECT: Final = 17
PROJECT_SKU: Final = 18
CHIP_SKU: Final = 15
FWID: Final = 20

_VERSION: Final = 0x11
_GET_MEASUREMENTS: Final = 0xE0
_MEASUREMENTS: Final = 0x60
_REQUEST_BYTES: Final = 37
_DMTF: Final = 1
_STEP: Final = "1"


@dataclass(frozen=True, slots=True)
class GpuReport:
    """A decoded report; nothing in it is believed yet.

    ``nonce`` is the requester's; ``measurements`` map an index from 1 to its value; ``signature``
    is r || s, big-endian, over ``signed``.
    """

    nonce: bytes
    measurements: Mapping[int, bytes]
    opaque: Mapping[int, bytes]
    signed: bytes
    signature: bytes

    @property
    def driver_version(self) -> str:
        """The driver's version, e.g. ``550.90.07``."""
        return _text(self.opaque.get(DRIVER_VERSION, b""))

    @property
    def vbios_version(self) -> str:
        """The VBIOS version as NVIDIA writes it, e.g. ``96.00.9F.00.01``."""
        raw = self.opaque.get(VBIOS_VERSION, b"")
        if len(raw) != 8:
            return ""
        digits = raw[3::-1].hex().upper() + raw[4:5].hex().upper()
        return ".".join(digits[at : at + 2] for at in range(0, 10, 2))

    def text(self, field: int) -> str:
        """A field of NVIDIA's that holds text."""
        return _text(self.opaque.get(field, b""))


def parse_report(data: bytes) -> GpuReport:
    """Strict decoding. Reasons: ``spdm_malformed``, ``spdm_version``, ``spdm_type``."""
    if len(data) > MAX_BYTES:
        raise _malformed(f"{len(data)} bytes, at most {MAX_BYTES} are read")
    reader = ByteReader(data, _malformed)
    _check_head(reader, _GET_MEASUREMENTS, "the request")
    nonce = reader.take(32, "the nonce")
    reader.take(_REQUEST_BYTES - 36, "the slot")
    _check_head(reader, _MEASUREMENTS, "the response")
    count = reader.uint(1, "the number of blocks")
    record = reader.take(_little(reader, 3, "the record's length"), "the measurement record")
    reader.take(32, "the responder's nonce")
    opaque = reader.take(_little(reader, 2, "the opaque length"), "the opaque data")
    signed = data[: reader.position]
    signature = reader.take(SIGNATURE_BYTES, "the signature")
    reader.end("the response")
    return GpuReport(nonce, _measurements(record, count), _fields(opaque), signed, signature)


def _check_head(reader: ByteReader, kind: int, what: str) -> None:
    version, code = reader.uint(1, what), reader.uint(1, what)
    if version != _VERSION:
        raise rejected("spdm_version", _STEP, expected="SPDM 1.1 (0x11)", actual=f"{version:#04x}")
    if code != kind:
        raise rejected("spdm_type", _STEP, expected=f"{what} ({kind:#04x})", actual=f"{code:#04x}")
    reader.take(2, what)


def _measurements(record: bytes, count: int) -> dict[int, bytes]:
    reader = ByteReader(record, _malformed)
    found: dict[int, bytes] = {}
    for _ in range(count):
        index, specification = reader.uint(1, "a block"), reader.uint(1, "a block")
        if specification != _DMTF or not index or index in found:
            raise _malformed(f"block {index} of specification {specification}")
        block = ByteReader(reader.take(_little(reader, 2, "a block"), "a block"), _malformed)
        block.take(1, "a measurement's type")
        found[index] = block.take(_little(block, 2, "a measurement"), "a measurement")
        block.end("a measurement")
    reader.end("the measurement record")
    return found


def _fields(opaque: bytes) -> dict[int, bytes]:
    reader = ByteReader(opaque, _malformed)
    found: dict[int, bytes] = {}
    while reader.position < len(opaque):
        kind = _little(reader, 2, "a field's type")
        if kind in found:
            raise _malformed(f"opaque field {kind} twice")
        found[kind] = reader.take(_little(reader, 2, "a field's size"), "a field")
    return found


def _little(reader: ByteReader, size: int, what: str) -> int:
    return int.from_bytes(reader.take(size, what), "little")


def _text(raw: bytes) -> str:
    """Text up to its first NUL; anything but printable ASCII is shown as '?'."""
    text = raw.split(b"\0", 1)[0].decode("ascii", "replace")
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in text)


def _malformed(what: str) -> EvidenceRejected:
    return rejected("spdm_malformed", _STEP, expected="SPDM measurements", actual=what)
