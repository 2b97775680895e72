"""AMD's roots and keys for one product, and the reports that they sign."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from .pki import CHIP, MEASUREMENT, TURIN_CHIP, Authority, number, raw_sign, tlv

_AMD = "1.3.6.1.4.1.3704.1."
_SPL = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_AT = {
    "Milan": {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    "Genoa": {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    "Turin": {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
}
CPUID = {"Milan": (0x19, 1, 1), "Genoa": (0x19, 0x11, 1), "Turin": (0x1A, 2, 0)}
TCB = {"bootloader": 4, "tee": 1, "snp": 22, "microcode": 213}


@dataclass
class Amd:
    """AMD's roots and keys for one product."""

    product: str = "Milan"
    seed: str = ""
    tcb: dict[str, int] = field(default_factory=dict)
    vlek: bool = False
    hwid: bytes | None = None
    named: str | None = None
    key_extensions: dict[str, bytes | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fmc = {"fmc": 2} if self.product == "Turin" else {}
        self.tcb = {**TCB, **fmc, **self.tcb}
        self.ark = Authority(f"ARK-{self.product}", seed=self.seed + self.product)
        middle = f"SEV-VLEK-{self.product}" if self.vlek else f"SEV-{self.product}"
        self.ask = Authority(middle, issuer=self.ark, seed=self.seed + middle, serial=11)

    @property
    def chip(self) -> bytes:
        return TURIN_CHIP if self.product == "Turin" else CHIP

    @property
    def endorsement(self) -> Authority:
        """The VCEK or the VLEK."""
        hwid = self.hwid
        if hwid is None:
            hwid = self.chip[:8] if self.product == "Turin" else self.chip
        values: dict[str, bytes | None] = {
            _AMD + "1": number(0),
            _AMD + "2": tlv(0x16, (self.named or f"{self.product}-B0").encode()),
            **{_AMD + _SPL[part]: number(version) for part, version in self.tcb.items()},
            _AMD + "4": None if self.vlek else hwid,
            _AMD + "5": tlv(0x16, b"a provider") if self.vlek else None,
        } | self.key_extensions
        kept = tuple((dotted, value) for dotted, value in values.items() if value is not None)
        title = "SEV-VLEK" if self.vlek else "SEV-VCEK"
        return Authority(
            title, issuer=self.ask, seed=self.seed + title, extensions=kept, is_authority=False
        )

    def tcb_bytes(self, **changes: int) -> bytes:
        raw = bytearray(8)
        for part, version in {**self.tcb, **changes}.items():
            raw[_AT[self.product][part]] = version
        return bytes(raw)

    def report(self, report_data: bytes = bytes(64), **how) -> bytes:
        """A signed report; ``how`` changes fields, ``sign=False`` leaves the signature out."""
        body = bytearray(0x2A0)
        version = how.get("version", 3)
        struct.pack_into("<IIQ", body, 0, version, 0, how.get("policy", 0x30000))
        struct.pack_into("<II", body, 0x30, how.get("vmpl", 0), how.get("algorithm", 1))
        flags = how.get("flags", 4 if self.vlek else 0)
        struct.pack_into("<QII", body, 0x40, 0, flags, how.get("reserved", 0))
        body[0x50:0x90] = report_data.ljust(64, b"\0")
        body[0x90:0xC0] = how.get("measurement", MEASUREMENT)
        tcb = self.tcb_bytes()
        for at, which in ((0x38, "current"), (0x180, "reported"), (0x1E0, "committed")):
            body[at : at + 8] = how.get(which, tcb)
        body[0x1F0:0x1F8] = how.get("launch", tcb)
        if version >= 3:
            body[0x188:0x18B] = bytes(how.get("cpuid", CPUID[self.product]))
        body[0x1A0:0x1E0] = how.get("chip", bytes(64) if self.vlek else self.chip)
        for at, value in how.get("patch", {}).items():
            body[at : at + len(value)] = value
        r, s = raw_sign(self.endorsement.key, bytes(body))
        order = how.get("byte_order", "little")
        numbers = [n.to_bytes(48, order).ljust(72, b"\0") for n in (r, s)]
        return bytes(body) + (b"".join(numbers) + bytes(368))
