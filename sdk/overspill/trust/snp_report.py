"""The SEV-SNP attestation report, versions 2 to 5 (AMD 56860, "SEV Secure Nested Paging Firmware
ABI", table ATTESTATION_REPORT): 1,184 bytes, little-endian, read strictly.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from overspill.errors import EvidenceRejected
from overspill.trust.base import rejected

REPORT_BYTES: Final = 1184
SIGNED_BYTES: Final = 0x2A0
VERSIONS: Final = (2, 3, 4, 5)
PRODUCTS: Final = ("Milan", "Genoa", "Turin")
VCEK: Final = 0
VLEK: Final = 1

_ECDSA_P384_SHA384: Final = 1
_NUMBER_BYTES: Final = 72  # r and s, little-endian, of which P-384 uses 48
_P384_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
_STEP_LAYOUT: Final = "1"
_STEP_PRODUCT: Final = "2"
_RESERVED_ONE: Final = 1 << 17
_KNOWN_POLICY: Final = (1 << 26) - 1
_MODELS: Final = (
    (0x19, range(0x00, 0x10), "Milan"),
    (0x19, range(0x10, 0x20), "Genoa"),
    (0x19, range(0xA0, 0xB0), "Genoa"),  # Bergamo and Siena, which AMD endorses as Genoa
    (0x1A, range(0x00, 0x20), "Turin"),
)
_LAYOUTS: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "Milan": MappingProxyType({"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}),
        "Genoa": MappingProxyType({"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}),
        "Turin": MappingProxyType({"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}),
    }
)
"""Where a product's TCB_VERSION holds each component's security version; other bytes are zero."""


@dataclass(frozen=True, slots=True)
class GuestPolicy:
    """The guest's policy word."""

    raw: int

    @property
    def abi(self) -> tuple[int, int]:
        """Least firmware ABI version, major and minor."""
        return self.raw >> 8 & 0xFF, self.raw & 0xFF

    @property
    def smt(self) -> bool:
        """Simultaneous multithreading may be on."""
        return bool(self.raw >> 16 & 1)

    @property
    def migration(self) -> bool:
        """A migration agent may be associated."""
        return bool(self.raw >> 18 & 1)

    @property
    def debug(self) -> bool:
        """The host may read and write the guest's memory."""
        return bool(self.raw >> 19 & 1)

    @property
    def single_socket(self) -> bool:
        """The guest may be activated on one socket only."""
        return bool(self.raw >> 20 & 1)


@dataclass(frozen=True, slots=True)
class SnpReport:
    """A decoded report; nothing in it is believed yet. ``cpuid`` is None before version 3.

    ``r`` and ``s`` are 48-byte big-endian numbers below the curve's order; ``signed`` is what they
    sign.
    """

    version: int
    guest_svn: int
    policy: GuestPolicy
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform_info: int
    signing_key: int
    author_key_en: bool
    mask_chip_key: bool
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    signed: bytes
    r: bytes
    s: bytes

    @property
    def product(self) -> str | None:
        """The product that a version 3 report or later names; None for version 2.

        Raises ``EvidenceRejected("product_unknown")``.
        """
        if self.cpuid is None:
            return None
        family, model, stepping = self.cpuid
        for known_family, models, product in _MODELS:
            if family == known_family and model in models:
                return product
        raise rejected(
            "product_unknown",
            _STEP_PRODUCT,
            expected=f"a CPU of {', '.join(PRODUCTS)}",
            actual=f"family {family:#x}, model {model:#x}, stepping {stepping}",
        )


def parse_report(data: bytes) -> SnpReport:
    """Strict decoding. Reasons: ``report_length``, ``report_version``, ``report_malformed``,
    ``signature_algorithm``, ``signature_zero``, ``signature_range``."""
    if len(data) != REPORT_BYTES:
        raise _refusal("report_length", f"{REPORT_BYTES} bytes", f"{len(data)} bytes")
    version, guest_svn, policy = struct.unpack_from("<IIQ", data)
    if version not in VERSIONS:
        raise _refusal("report_version", f"version {VERSIONS[0]} to {VERSIONS[-1]}", str(version))
    vmpl, algorithm = struct.unpack_from("<II", data, 0x30)
    if algorithm != _ECDSA_P384_SHA384:
        raise _refusal("signature_algorithm", "ECDSA P-384 with SHA-384 (1)", str(algorithm))
    platform_info, flags, reserved = struct.unpack_from("<QII", data, 0x40)
    _check_reserved(data, version, flags, reserved)
    _check_policy(policy)
    r, s = _signature(data)
    return SnpReport(
        version=version,
        guest_svn=guest_svn,
        policy=GuestPolicy(policy),
        family_id=data[0x10:0x20],
        image_id=data[0x20:0x30],
        vmpl=vmpl,
        current_tcb=data[0x38:0x40],
        platform_info=platform_info,
        signing_key=flags >> 2 & 7,
        author_key_en=bool(flags & 1),
        mask_chip_key=bool(flags & 2),
        report_data=data[0x50:0x90],
        measurement=data[0x90:0xC0],
        host_data=data[0xC0:0xE0],
        id_key_digest=data[0xE0:0x110],
        author_key_digest=data[0x110:0x140],
        report_id=data[0x140:0x160],
        report_id_ma=data[0x160:0x180],
        reported_tcb=data[0x180:0x188],
        cpuid=(data[0x188], data[0x189], data[0x18A]) if version >= 3 else None,
        chip_id=data[0x1A0:0x1E0],
        committed_tcb=data[0x1E0:0x1E8],
        launch_tcb=data[0x1F0:0x1F8],
        signed=data[:SIGNED_BYTES],
        r=r,
        s=s,
    )


def tcb_components(product: str, tcb: bytes) -> Mapping[str, int]:
    """A TCB_VERSION (8 bytes) by component, in the layout of ``product``.

    Raises ``EvidenceRejected("report_malformed")`` for reserved bytes that are set.
    """
    layout = _LAYOUTS[product]
    if any(byte for at, byte in enumerate(tcb) if at not in layout.values()):
        raise _malformed(f"reserved bytes in a {product} TCB version: {tcb.hex()}")
    return {name: tcb[at] for name, at in layout.items()}


def component_names(product: str) -> tuple[str, ...]:
    """The components of a product's TCB version."""
    return tuple(_LAYOUTS[product])


def _check_reserved(data: bytes, version: int, flags: int, reserved: int) -> None:
    """Reserved fields are zero in every version that is read: a new meaning has a new version."""
    if flags >> 5 or reserved:
        raise _malformed("reserved key flags are set")
    areas = [(0x18B if version >= 3 else 0x188, 0x1A0)]
    areas += [(0x1EB, 0x1EC), (0x1EF, 0x1F0)]
    areas += [(0x208 if version >= 5 else 0x1F8, SIGNED_BYTES)]
    for start, end in areas:
        if any(data[start:end]):
            raise _malformed(f"reserved bytes {start:#x} to {end:#x} are set")


def _check_policy(policy: int) -> None:
    if not policy & _RESERVED_ONE or policy & ~_KNOWN_POLICY:
        raise _malformed(f"a guest policy with reserved bits: {policy:#x}")


def _signature(data: bytes) -> tuple[bytes, bytes]:
    """r and s as 48 big-endian bytes; the rest of the signature's 512 bytes is zero."""
    area = data[SIGNED_BYTES:]
    if any(area[2 * _NUMBER_BYTES :]):
        raise _malformed("bytes after the signature's numbers are set")
    numbers = []
    for name, start in (("r", 0), ("s", _NUMBER_BYTES)):
        number = int.from_bytes(area[start : start + _NUMBER_BYTES], "little")
        if number == 0:
            raise _refusal("signature_zero", f"{name} between 1 and the curve's order", "0")
        if number >= _P384_ORDER:
            raise _refusal(
                "signature_range",
                f"{name} below the order of P-384, little-endian",
                f"a number of {number.bit_length()} bits",
            )
        numbers.append(number.to_bytes(48, "big"))
    return numbers[0], numbers[1]


def _malformed(what: str) -> EvidenceRejected:
    return _refusal("report_malformed", "a SEV-SNP attestation report", what)


def _refusal(reason: str, expected: str, actual: str) -> EvidenceRejected:
    return rejected(reason, _STEP_LAYOUT, expected=expected, actual=actual)
