"""Raw evidence from anywhere: which of the given bytes is what.

Roles are recognised by content, never by a file's name: binary, hex or base64 reports, DER or PEM
certificates and CRLs, JSON collateral. What nothing recognises is taken for the evidence itself, so
that its own parser says what is wrong with it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from overspill.errors import EvidenceRejected
from overspill.trust import json_strict
from overspill.trust.base import rejected
from overspill.trust.certificates import (
    Certificate,
    Crl,
    load_key,
    parse_certificate,
    parse_crl,
    read_pem,
)
from overspill.trust.snp_report import REPORT_BYTES

MAX_FILE_BYTES: Final = 1 << 20
_MAX_DEPTH: Final = 4
_HEX: Final = re.compile(rb"(?:0[xX])?(?:[0-9a-fA-F]{2}\s*){16,}")
_BASE64: Final = re.compile(rb"(?:[A-Za-z0-9+/_-]\s*){24,}(?:=\s*){0,2}")
_ARMOUR: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s+([A-Za-z0-9+/=\s]+?)-----END \1-----")
_KEY_LABELS: Final = (b"PUBLIC KEY",)
_REPORT_LABELS: Final = (b"REPORT", b"QUOTE")


class Role(Enum):
    """What a piece of raw evidence is."""

    SNP_REPORT = "SEV-SNP report"
    HCL_REPORT = "HCL report"
    TDX_QUOTE = "TDX quote"
    TPM_QUOTE = "TPM quote"
    TPM_SIGNATURE = "TPM signature"
    TPM_PUBLIC = "TPM public area"
    PCRS = "PCR values"
    EVENT_LOG = "TCG event log"
    SPDM = "SPDM measurements"
    PUBLIC_KEY = "public key"
    TCB_INFO = "TCB info"
    QE_IDENTITY = "QE identity"
    RIM = "reference integrity manifest"
    UNKNOWN = "unrecognised"


@dataclass(frozen=True)
class Materials:
    """Everything that was given, by role. Nothing is believed yet."""

    certificates: tuple[Certificate, ...] = ()
    crls: tuple[Crl, ...] = ()
    pieces: Mapping[Role, tuple[bytes, ...]] = field(default_factory=dict)

    def of(self, role: Role) -> tuple[bytes, ...]:
        """All pieces of a role, each once, in the order given."""
        return self.pieces.get(role, ())

    def one(self, role: Role, *, step: str = "1") -> bytes:
        """The only piece of a role, or what nothing recognised. Reasons: ``evidence_missing``,
        ``evidence_count``."""
        found = self.of(role) or self.of(Role.UNKNOWN)
        if not found:
            raise rejected("evidence_missing", step, expected=f"a {role.value}", actual="none")
        if len(found) > 1:
            raise rejected(
                "evidence_count", step, expected=f"one {role.value}", actual=str(len(found))
            )
        return found[0]


def recognise(files: Iterable[bytes]) -> Materials:
    """Sorts the contents of files. Raises ``EvidenceRejected``: ``file_too_large`` and, for damaged
    PEM or JSON, ``certificate_malformed`` or ``json_malformed``."""
    sorter = _Sorter()
    for data in files:
        if len(data) > MAX_FILE_BYTES:
            raise rejected(
                "file_too_large", "1", expected=f"at most {MAX_FILE_BYTES} bytes a file",
                actual=str(len(data)),
            )  # fmt: skip
        sorter.add(data, 0)
    return sorter.result()


class _Sorter:
    """Collects pieces; each ``_try_*`` says whether it took the bytes."""

    def __init__(self) -> None:
        self._certificates: dict[bytes, Certificate] = {}
        self._crls: dict[bytes, Crl] = {}
        self._pieces: dict[Role, dict[bytes, None]] = {}

    def result(self) -> Materials:
        pieces = {role: tuple(found) for role, found in self._pieces.items()}
        return Materials(tuple(self._certificates.values()), tuple(self._crls.values()), pieces)

    def add(self, data: bytes, depth: int) -> None:
        """Puts bytes where they belong; text forms are opened, a few layers deep."""
        taken = (
            self._try_binary(data)
            or self._try_armour(data, depth)
            or self._try_json(data, depth)
            or self._try_text(data, depth)
        )
        if not taken:
            self.put(Role.UNKNOWN, data)

    def put(self, role: Role, data: bytes) -> None:
        """Notes a piece under a role, once."""
        self._pieces.setdefault(role, {})[data] = None

    def _try_binary(self, data: bytes) -> bool:
        if data[:1] == b"\x30" and self._try_der(data):
            return True
        role = _binary_role(data)
        if role is not None:
            self.put(role, data)
        return role is not None

    def _try_der(self, data: bytes) -> bool:
        """A certificate, a CRL or a public key; what is none of them is left to others."""
        try:
            certificate = parse_certificate(data)
        except EvidenceRejected:
            return self._try_crl_or_key(data)
        self._certificates[data] = certificate
        return True

    def _try_crl_or_key(self, data: bytes) -> bool:
        try:
            self._crls[data] = parse_crl(data)
        except EvidenceRejected:
            try:
                load_key(data)
            except EvidenceRejected:
                return False
            self.put(Role.PUBLIC_KEY, data)
        return True

    def _try_armour(self, data: bytes, depth: int) -> bool:
        """PEM: certificates, CRLs, public keys, and reports in the same clothes."""
        if b"-----BEGIN " not in data or data.lstrip()[:1] in (b"{", b"["):
            return False
        certificates, crls = read_pem(data)
        self._certificates |= {one.der: one for one in certificates}
        self._crls |= {one.der: one for one in crls}
        took = bool(certificates or crls)
        for label, body in _ARMOUR.findall(data):
            if label in _KEY_LABELS:
                self.put(Role.PUBLIC_KEY, _base64(body))
                took = True
            elif label in _REPORT_LABELS and depth < _MAX_DEPTH:
                self.add(_base64(body), depth + 1)
                took = True
        return took

    def _try_json(self, data: bytes, depth: int) -> bool:
        if data.lstrip()[:1] != b"{" or depth >= _MAX_DEPTH:
            return False
        if (role := _signed_json_role(data)) is not None:
            self.put(role, data)
            return True
        value = json_strict.loads(data, step="1")
        return self._open(value, depth) if isinstance(value, dict) else False

    def _open(self, value: dict[str, Any], depth: int) -> bool:
        """Known JSON bundles, by their keys."""
        took = self._take_signed_bodies(value)
        for name, item in value.items():
            if name not in _TAKEN:
                took = self._take(name, item, depth) or took
        return took

    def _take_signed_bodies(self, value: dict[str, Any]) -> bool:
        """A collateral service's documents, each beside its signature."""
        took = False
        for role, names in _COLLATERAL_BODIES.items():
            body, signature = (value.get(name) for name in names[:2])
            if isinstance(body, str) and isinstance(signature, str):
                text = f'{{"{names[2]}":{body},"signature":"{signature}"}}'
                self.put(role, text.encode("utf-8"))
                took = True
        return took

    def _take(self, name: str, item: Any, depth: int) -> bool:
        """One member; False for one that is not known here."""
        if name in _NESTED and isinstance(item, dict):
            return self._open(item, depth + 1)
        if name == "pcrs" and isinstance(item, list):
            self._put_pcrs(item)
            return True
        if (name not in _TPM_PARTS and name not in _OPENED) or (piece := _bytes_of(item)) is None:
            return False
        if name in _TPM_PARTS:
            self.put(_TPM_PARTS[name], piece)
        else:
            self.add(piece, depth + 1)
        return True

    def _put_pcrs(self, values: list[Any]) -> None:
        """The SHA-256 bank's values, PCR 0 first, one after the other."""
        found = [_bytes_of(value) or b"" for value in values]
        if len(found) > 24 or any(len(value) != 32 for value in found):
            raise rejected(
                "pcr_values", "1", expected="at most 24 values of 32 bytes", actual="other values"
            )
        self.put(Role.PCRS, b"".join(found))

    def _try_text(self, data: bytes, depth: int) -> bool:
        """Hex, then base64 or base64url, of something that is recognised in its turn."""
        if depth >= _MAX_DEPTH:
            return False
        text = data.strip()
        if _HEX.fullmatch(text):
            digits = b"".join(text.split())
            if digits[:2] in (b"0x", b"0X"):
                digits = digits[2:]
            if len(digits) % 2 == 0:
                self.add(bytes.fromhex(digits.decode("ascii")), depth + 1)
                return True
        if _BASE64.fullmatch(text):
            self.add(_base64(text), depth + 1)
            return True
        return False


_COLLATERAL_BODIES: Final[Mapping[Role, tuple[str, str, str]]] = {
    Role.TCB_INFO: ("tcb_info", "tcb_info_signature", "tcbInfo"),
    Role.QE_IDENTITY: ("qe_identity", "qe_identity_signature", "enclaveIdentity"),
}
_TAKEN: Final = frozenset(
    {"tcb_info", "tcb_info_signature", "qe_identity", "qe_identity_signature"}
)
_NESTED: Final = frozenset({"quote", "tpm_quote", "collateral", "AK", "Quote", "Log"})
_TPM_PARTS: Final[Mapping[str, Role]] = {
    "message": Role.TPM_QUOTE,
    "attest": Role.TPM_QUOTE,
    "signature": Role.TPM_SIGNATURE,
    "ak_public": Role.PUBLIC_KEY,
    "ak_pub": Role.PUBLIC_KEY,
    "Public": Role.TPM_PUBLIC,
    "Quote": Role.TPM_QUOTE,
    "Signature": Role.TPM_SIGNATURE,
}
_OPENED: Final = frozenset(
    {
        "report", "hcl_report", "vcek", "vlek", "ask", "ark", "cert_chain", "quote", "attestation",
        "evidence", "certificate", "certificates", "certChain", "event_log", "eventlog",
        "pck_crl_issuer_chain", "root_ca_crl", "pck_crl", "tcb_info_issuer_chain",
        "qe_identity_issuer_chain", "pck_certificate_chain", "ak_certificate", "ek_certificate",
    }
)  # fmt: skip


def _binary_role(data: bytes) -> Role | None:
    """The role of bytes that begin as only one kind does."""
    if len(data) == REPORT_BYTES and data[1:4] == b"\0\0\0" and data[0] in range(1, 16):
        return Role.SNP_REPORT
    heads = (
        (Role.HCL_REPORT, data[:4] == b"HCLA"),
        (Role.TDX_QUOTE, data[1:2] == b"\0" and data[4:8] == b"\x81\0\0\0" and len(data) >= 48),
        (Role.TPM_QUOTE, data[:4] == b"\xffTCG"),
        (Role.TPM_SIGNATURE, data[:4] in _TPMT_SIGNATURES),
        (Role.TPM_PUBLIC, _is_tpm_public(data)),
        (Role.EVENT_LOG, data[:8] == b"\0\0\0\0\x03\0\0\0" and b"Spec ID Event03" in data[:64]),
        (Role.SPDM, data[:2] == b"\x11\xe0"),
        (Role.RIM, b"<SoftwareIdentity" in data[:4096]),
    )
    return next((role for role, holds in heads if holds), None)


_TPMT_SIGNATURES: Final = (
    b"\x00\x14\x00\x0b", b"\x00\x16\x00\x0b", b"\x00\x18\x00\x0b",
    b"\x00\x14\x00\x0c", b"\x00\x16\x00\x0c", b"\x00\x18\x00\x0c", b"\x00\x14\x00\x04",
)  # fmt: skip


def _is_tpm_public(data: bytes) -> bool:
    """TPMT_PUBLIC, or TPM2B_PUBLIC with its size in front."""
    sized = len(data) > 2 and int.from_bytes(data[:2], "big") == len(data) - 2
    body = data[2:] if sized else data
    return body[:4] in (b"\x00\x01\x00\x0b", b"\x00\x23\x00\x0b", b"\x00\x23\x00\x0c")


def _signed_json_role(data: bytes) -> Role | None:
    """Intel's signed documents, which are verified over the very bytes they came in."""
    head = data.lstrip()[:64].replace(b" ", b"")
    if head.startswith(b'{"tcbInfo":'):
        return Role.TCB_INFO
    if head.startswith(b'{"enclaveIdentity":'):
        return Role.QE_IDENTITY
    return None


def _bytes_of(item: Any) -> bytes | None:
    """Bytes of a JSON value: text as it is, or a list of numbers."""
    if isinstance(item, str):
        if re.fullmatch(r"(?:[0-9a-fA-F]{2})+", item):
            return bytes.fromhex(item)
        try:
            return _base64(item.encode("ascii")) if "-----" not in item else item.encode("ascii")
        except (EvidenceRejected, UnicodeEncodeError):
            return item.encode("utf-8")
    if isinstance(item, list) and all(type(n) is int and 0 <= n <= 255 for n in item):
        return bytes(item)
    return None


def _base64(text: bytes) -> bytes:
    packed = b"".join(text.split()).rstrip(b"=")
    packed = packed.replace(b"-", b"+").replace(b"_", b"/")
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error as error:
        raise rejected(
            "base64_malformed", "1", expected="base64", actual="something else"
        ) from error
