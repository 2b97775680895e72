"""TDX quotes, versions 4 and 5 (Intel, "TDX DCAP Quoting Library API", appendix A): little-endian,
read strictly. Version 4 carries a TD report of TDX 1.0, version 5 one of TDX 1.0 or 1.5.

The signature data holds the quote's signature, the attestation key, and certification data of type
6: the quoting enclave's report, signed by the PCK, and the PCK's chain as type 5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from overspill.errors import EvidenceRejected
from overspill.trust.base import rejected
from overspill.types.binary import ByteReader

VERSIONS: Final = (4, 5)
MAX_BYTES: Final = 64 << 10

_TEE_TDX: Final = 0x81
_KEY_P256: Final = 2
_INTEL_QE: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_HEADER_BYTES: Final = 48
_BODY_BYTES: Final = {2: 584, 3: 648}  # TD report of TDX 1.0, of TDX 1.5
_QE_REPORT_BYTES: Final = 384
_CERT_QE_REPORT: Final = 6
_CERT_PCK_CHAIN: Final = 5
_STEP: Final = "1"
_STEP_HEADER: Final = "1"


@dataclass(frozen=True, slots=True)
class TdReport:
    """The body: what the TDX module says of the guest. Digests have 48 bytes."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: int
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn_2: bytes = b""
    mr_service_td: bytes = b""

    @property
    def debug(self) -> bool:
        """A bit of the TUD group is set: the guest is under test, and the host can look inside."""
        return bool(self.td_attributes & 0xFF)

    @property
    def migratable(self) -> bool:
        """A service TD may move the guest to another machine."""
        return bool(self.td_attributes >> 29 & 1)


@dataclass(frozen=True, slots=True)
class QeReport:
    """The quoting enclave's SGX report, which the PCK signed; ``raw`` has 384 bytes."""

    raw: bytes
    misc_select: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes


@dataclass(frozen=True, slots=True)
class Quote:
    """A decoded quote; nothing in it is believed yet. Signatures are r || s, big-endian.

    ``trailing`` is what follows the quote: no part of it, and signed by nobody.
    """

    version: int
    report: TdReport
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: QeReport
    qe_signature: bytes
    qe_auth_data: bytes
    pck_chain: bytes
    trailing: bytes


def parse_quote(data: bytes) -> Quote:
    """Strict decoding. Reasons: ``quote_version``, ``quote_type``, ``attestation_key_type``,
    ``certification_type``, ``quote_malformed``."""
    if len(data) > MAX_BYTES:
        raise _malformed(f"{len(data)} bytes, at most {MAX_BYTES} are read")
    reader = ByteReader(data, _malformed)
    version = _check_header(reader.take(_HEADER_BYTES, "the header"))
    body_type, body_bytes = _body_kind(reader, version)
    body = reader.take(body_bytes, "the TD report")
    signed = data[: reader.position]
    signature_data = reader.take(_u32(reader, "the signature data's length"), "the signature data")
    trailing = data[reader.position :]
    inner = ByteReader(signature_data, _malformed)
    signature = inner.take(64, "the signature")
    attestation_key = inner.take(64, "the attestation key")
    certification = _certification(inner, _CERT_QE_REPORT)
    inner.end("the signature data")
    qe = ByteReader(certification, _malformed)
    qe_report = _qe_report(qe.take(_QE_REPORT_BYTES, "the QE report"))
    qe_signature = qe.take(64, "the QE report's signature")
    qe_auth_data = qe.take(_u16(qe, "the QE authentication data's length"), "the QE's data")
    pck_chain = _certification(qe, _CERT_PCK_CHAIN)
    qe.end("the QE certification data")
    return Quote(
        version, _td_report(body, body_type), signed, signature, attestation_key,
        qe_report, qe_signature, qe_auth_data, pck_chain, trailing,
    )  # fmt: skip


def _check_header(header: bytes) -> int:
    version, key_type, tee_type = struct.unpack_from("<HHI", header)
    if version not in VERSIONS:
        raise _refusal("quote_version", "a quote of version 4 or 5", str(version))
    if tee_type != _TEE_TDX:
        raise _refusal("quote_type", f"a TDX quote ({_TEE_TDX:#x})", f"{tee_type:#x}")
    if key_type != _KEY_P256:
        raise _refusal("attestation_key_type", "ECDSA P-256 (2)", str(key_type))
    if header[12:28] != _INTEL_QE:
        raise _refusal("quote_type", "Intel's quoting enclave", header[12:28].hex())
    return int(version)


def _body_kind(reader: ByteReader, version: int) -> tuple[int, int]:
    if version == 4:
        return 2, _BODY_BYTES[2]
    kind, size = _u16(reader, "the body's type"), _u32(reader, "the body's size")
    if _BODY_BYTES.get(kind) != size:
        raise _refusal("quote_type", "a TD report of TDX 1.0 or 1.5", f"type {kind}, {size} bytes")
    return kind, size


def _certification(reader: ByteReader, wanted: int) -> bytes:
    kind = _u16(reader, "the certification data's type")
    if kind != wanted:
        raise _refusal("certification_type", f"certification data of type {wanted}", str(kind))
    return reader.take(_u32(reader, "the certification data's size"), "the certification data")


def _td_report(body: bytes, kind: int) -> TdReport:
    reader = ByteReader(body, _malformed)
    take = reader.take
    report = TdReport(
        tee_tcb_svn=take(16, "TEE_TCB_SVN"),
        mr_seam=take(48, "MRSEAM"),
        mr_signer_seam=take(48, "MRSIGNERSEAM"),
        seam_attributes=take(8, "SEAMATTRIBUTES"),
        td_attributes=int.from_bytes(take(8, "TDATTRIBUTES"), "little"),
        xfam=take(8, "XFAM"),
        mr_td=take(48, "MRTD"),
        mr_config_id=take(48, "MRCONFIGID"),
        mr_owner=take(48, "MROWNER"),
        mr_owner_config=take(48, "MROWNERCONFIG"),
        rtmrs=(take(48, "RTMR0"), take(48, "RTMR1"), take(48, "RTMR2"), take(48, "RTMR3")),
        report_data=take(64, "REPORTDATA"),
        tee_tcb_svn_2=take(16, "TEE_TCB_SVN_2") if kind == 3 else b"",
        mr_service_td=take(48, "MRSERVICETD") if kind == 3 else b"",
    )
    reader.end("the TD report")
    return report


def _qe_report(raw: bytes) -> QeReport:
    """SGX report body; its reserved fields are covered by the PCK's signature."""
    isv_prod_id, isv_svn = struct.unpack_from("<HH", raw, 256)
    return QeReport(
        raw=raw,
        misc_select=raw[16:20],
        attributes=raw[48:64],
        mr_enclave=raw[64:96],
        mr_signer=raw[128:160],
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
        report_data=raw[320:384],
    )


def _u16(reader: ByteReader, what: str) -> int:
    return int.from_bytes(reader.take(2, what), "little")


def _u32(reader: ByteReader, what: str) -> int:
    return int.from_bytes(reader.take(4, what), "little")


def _malformed(what: str) -> EvidenceRejected:
    return rejected("quote_malformed", _STEP, expected="a TDX quote", actual=what)


def _refusal(reason: str, expected: str, actual: str) -> EvidenceRejected:
    return rejected(reason, _STEP_HEADER, expected=expected, actual=actual)
