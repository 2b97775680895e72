"""The firmware's event log (TCG, "PC Client Platform Firmware Profile", 10: crypto-agile format),
read strictly, and what its replay says: the registers' values, and whether secure boot was on.

An event's data are believed only where its digest is theirs; the log as a whole only once its
replay gives the quoted registers. An event's kind is in no digest: whoever hands out the log may
write any, so no conclusion rests on one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from overspill.errors import EvidenceRejected
from overspill.trust.base import rejected
from overspill.types.binary import ByteReader

MAX_BYTES: Final = 1 << 20
SHA256: Final = 0x000B
SHA384: Final = 0x000C

_SIZES: Final[Mapping[int, int]] = {0x0004: 20, SHA256: 32, SHA384: 48, 0x000D: 64, 0x0012: 32}
_NAMES: Final[Mapping[int, str]] = {SHA256: "sha256", SHA384: "sha384"}
_MAX_PCR: Final = 23
_MAX_EVENTS: Final = 4096
_STEP: Final = "8"
_NO_ACTION: Final = 0x00000003
_SEPARATORS: Final = (bytes(4), b"\xff" * 4, b"\x01\0\0\0")
"""The data of a separator, and of one that tells of an error (section 10.4.5 of the profile)."""
_SPEC_ID: Final = b"Spec ID Event03\0"
_STARTUP: Final = b"StartupLocality\0"
_SECURE_BOOT_PCR: Final = 7
_GLOBAL_VARIABLE: Final = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_SECURE_BOOT_NAME: Final = "SecureBoot".encode("utf-16-le")
_SECURE_BOOT_VARIABLE: Final = _GLOBAL_VARIABLE + struct.pack("<Q", len("SecureBoot"))
_DEBUG_MODES: Final = (b"UEFI Debug Mode", b"UEFI Debug Mode\0")


@dataclass(frozen=True, slots=True)
class Event:
    """One event: the register, the kind, its digest in each bank, and its data."""

    pcr: int
    kind: int
    digests: Mapping[int, bytes]
    data: bytes


@dataclass(frozen=True, slots=True)
class EventLog:
    """A whole log; the first event, which describes the format, is left out."""

    banks: tuple[int, ...]
    events: tuple[Event, ...]

    def replay(self, bank: int = SHA256) -> dict[int, bytes]:
        """Register to value, for those that the log extends. Raises ``EvidenceRejected``:
        ``event_log_bank``."""
        if bank not in self.banks or bank not in _NAMES:
            raise rejected(
                "event_log_bank", _STEP, expected=f"digests of {bank:#06x}", actual=str(self.banks)
            )
        size, registers = _SIZES[bank], dict[int, bytes]()
        for event in self.events:
            if event.kind == _NO_ACTION:
                if event.pcr == 0 and event.data.startswith(_STARTUP):
                    registers[0] = bytes(size - 1) + event.data[-1:]
                continue
            start = registers.get(event.pcr, bytes(size))
            joined = start + event.digests[bank]
            registers[event.pcr] = hashlib.new(_NAMES[bank], joined).digest()
        return registers

    @property
    def secure_boot(self) -> bool | None:
        """Whether the firmware measured that secure boot was on; None when it measured nothing."""
        return self.secure_boot_in(_SECURE_BOOT_PCR, SHA256)

    def secure_boot_in(self, register: int, bank: int) -> bool | None:
        """The same for a log whose firmware measures its configuration into ``register``; ``bank``
        is the one whose replay was compared.

        Only what came before the separator counts: what follows is the boot loader's, which may
        measure anything. Separator, variable and debug mode are known by their digests, never by
        the kinds that the log gives them, or a log with other kinds would move the border. The
        variable has to be there once or more and say yes each time; without a separator nothing
        was said.
        """
        said: list[bool] = []
        name = _NAMES[bank]
        separators = {hashlib.new(name, data).digest() for data in _SEPARATORS}
        debugged = {hashlib.new(name, data).digest() for data in _DEBUG_MODES}
        for event in self.events:
            if event.pcr != register:
                continue
            digest = event.digests.get(bank)
            if digest in separators:
                return all(said) if said else None
            if digest in debugged:
                said.append(False)
            elif digest == hashlib.new(name, event.data).digest():
                said += [value == b"\x01" for value in _secure_boot_variable(event.data)]
        return None


def log_bytes(data: bytes) -> int:
    """How much of an area is its log: up to where the next event's register and kind are all ones
    or all zeros. Raises ``EvidenceRejected("event_log_malformed")``."""
    reader = ByteReader(data, _malformed)
    banks = _open(reader)
    while reader.position < len(data):
        if data[reader.position : reader.position + 8] in (b"\xff" * 8, bytes(8)):
            break
        _event(reader, banks)
    return reader.position


def parse_event_log(data: bytes) -> EventLog:
    """Strict decoding. Raises ``EvidenceRejected("event_log_malformed")``."""
    if len(data) > MAX_BYTES:
        raise _malformed(f"{len(data)} bytes, at most {MAX_BYTES} are read")
    reader = ByteReader(data, _malformed)
    banks = _open(reader)
    events: list[Event] = []
    while reader.position < len(data):
        if len(events) >= _MAX_EVENTS:
            raise _malformed(f"more than {_MAX_EVENTS} events")
        events.append(_event(reader, banks))
    return EventLog(banks, tuple(events))


def _open(reader: ByteReader) -> tuple[int, ...]:
    """The banks that the first event names."""
    pcr, kind = _u32(reader, "a register"), _u32(reader, "an event's kind")
    reader.take(20, "a digest")
    header = reader.take(_u32(reader, "an event's size"), "the first event")
    if (pcr, kind) != (0, _NO_ACTION):
        raise _malformed("a first event that describes no format")
    return _banks(header)


def _banks(header: bytes) -> tuple[int, ...]:
    reader = ByteReader(header, _malformed)
    if reader.take(16, "the signature") != _SPEC_ID:
        raise _malformed("no crypto-agile log")
    reader.take(8, "the platform's class and version")
    count = _u32(reader, "the number of banks")
    if not 0 < count <= len(_SIZES):
        raise _malformed(f"{count} banks")
    found = []
    for _ in range(count):
        bank, size = _u16(reader, "a bank"), _u16(reader, "a digest's size")
        if _SIZES.get(bank) != size or bank in found:
            raise _malformed(f"bank {bank:#06x} with digests of {size} bytes")
        found.append(bank)
    reader.take(reader.uint(1, "the vendor's size"), "the vendor's part")
    reader.end("the first event")
    return tuple(found)


def _event(reader: ByteReader, banks: tuple[int, ...]) -> Event:
    pcr, kind = _u32(reader, "a register"), _u32(reader, "an event's kind")
    count = _u32(reader, "the number of digests")
    if pcr > _MAX_PCR or count != len(banks):
        raise _malformed(f"register {pcr} with {count} digests")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        bank = _u16(reader, "a bank")
        if bank not in banks or bank in digests:
            raise _malformed(f"a digest of bank {bank:#06x}")
        digests[bank] = reader.take(_SIZES[bank], "a digest")
    return Event(pcr, kind, digests, reader.take(_u32(reader, "an event's size"), "an event"))


def _secure_boot_variable(data: bytes) -> list[bytes]:
    """The value of UEFI_VARIABLE_DATA, when that is what this is and the variable SecureBoot."""
    if not data.startswith(_SECURE_BOOT_VARIABLE):
        return []
    reader = ByteReader(data, _malformed)
    reader.take(16, "a variable's GUID")
    name_units = int.from_bytes(reader.take(8, "a name's length"), "little")
    value_bytes = int.from_bytes(reader.take(8, "a value's length"), "little")
    name = reader.take(2 * name_units, "a variable's name")
    value = reader.take(value_bytes, "a variable's value")
    reader.end("a variable")
    return [value] if name == _SECURE_BOOT_NAME else []


def _u16(reader: ByteReader, what: str) -> int:
    return int.from_bytes(reader.take(2, what), "little")


def _u32(reader: ByteReader, what: str) -> int:
    return int.from_bytes(reader.take(4, what), "little")


def _malformed(what: str) -> EvidenceRejected:
    return rejected("event_log_malformed", _STEP, expected="a TCG event log", actual=what)
