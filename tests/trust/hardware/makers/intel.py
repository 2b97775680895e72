"""Intel's root, a platform, its quotes, and what the collateral service signs."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from datetime import timedelta

from .pki import CLOCK, MEASUREMENT, P256, Authority, key, number, oid, point, raw_sign, tlv

FMSPC = bytes.fromhex("00a06d080000")
SGX_SVNS = (2, 2, 2, 2, 3, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0)
TEE_TCB = bytes((5, 1, 2)) + bytes(13)
_SGX = "1.2.840.113741.1.13.1"
_QE_SIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")


def sgx_extension(
    fmspc: bytes = FMSPC, svns: tuple[int, ...] = SGX_SVNS, pce_svn: int = 11
) -> bytes:
    """What a PCK certificate says of its platform."""
    tcb = [tlv(0x30, oid(f"{_SGX}.2.{n}"), number(svn)) for n, svn in enumerate(svns, 1)]
    tcb.append(tlv(0x30, oid(f"{_SGX}.2.17"), number(pce_svn)))
    tcb.append(tlv(0x30, oid(f"{_SGX}.2.18"), tlv(4, bytes(16))))
    return tlv(
        0x30,
        tlv(0x30, oid(f"{_SGX}.1"), tlv(4, bytes(16))),
        tlv(0x30, oid(f"{_SGX}.2"), tlv(0x30, *tcb)),
        tlv(0x30, oid(f"{_SGX}.3"), tlv(4, bytes(2))),
        tlv(0x30, oid(f"{_SGX}.4"), tlv(4, fmspc)),
        tlv(0x30, oid(f"{_SGX}.5"), tlv(0x0A, b"\1")),
    )


def tcb_level(status: str, sgx=SGX_SVNS, pce=11, tdx=(5, 1, 2), **more) -> dict:
    parts = [{"svn": svn} for svn in sgx]
    tdx_parts = [{"svn": svn} for svn in (*tdx, *bytes(16 - len(tdx)))]
    tcb = {"sgxtcbcomponents": parts, "pcesvn": pce, "tdxtcbcomponents": tdx_parts}
    return {"tcb": tcb, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": status} | more


def stamp(days: int) -> str:
    return (CLOCK + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def isv_level(svn: int, status: str) -> dict:
    return {"tcb": {"isvsvn": svn}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": status}


@dataclass
class Intel:
    """Intel's root, a platform with its keys, and the collateral service."""

    seed: str = ""
    extension: bytes = field(default_factory=sgx_extension)
    pck_serial: int = 21

    def __post_init__(self) -> None:
        make = lambda title, issuer, **how: Authority(  # noqa: E731
            title, P256, issuer, self.seed + title, **how
        )
        self.root = make("Intel SGX Root CA", None)
        self.authority = make("Intel SGX PCK Platform CA", self.root, serial=12)
        self.signer = make("Intel SGX TCB Signing", self.root, serial=13, is_authority=False)
        self.pck = make(
            "Intel SGX PCK Certificate",
            self.authority,
            serial=self.pck_serial,
            is_authority=False,
            extensions=((_SGX, self.extension),),
        )
        self.ak = key(self.seed + "attestation key", P256)

    @property
    def chain(self) -> bytes:
        return self.pck.pem + self.authority.pem + self.root.pem

    def body(self, report_data: bytes = bytes(64), **how) -> bytes:
        """A TD report of 584 bytes."""
        rtmrs = how.get("rtmrs", tuple(bytes([n]) * 48 for n in range(4)))
        return b"".join(
            (
                how.get("tee_tcb", TEE_TCB),
                how.get("mr_seam", b"\x0a" * 48),
                how.get("mr_signer_seam", bytes(48)),
                how.get("seam_attributes", bytes(8)),
                struct.pack("<Q", how.get("attributes", 1 << 28)),
                bytes(8),
                how.get("mrtd", MEASUREMENT),
                bytes(48 * 3),
                *rtmrs,
                report_data.ljust(64, b"\0"),
            )
        )

    def quote(self, report_data: bytes = bytes(64), **how) -> bytes:
        """A signed quote; ``how`` changes its parts."""
        version = how.get("version", 4)
        vendor = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
        header = struct.pack(
            "<HHIHH", version, how.get("key_type", 2), how.get("tee", 0x81), 0, 0
        ) + how.get("vendor", vendor).ljust(36, b"\0")
        body = self.body(report_data, **how)
        if version == 5:
            body += how.get("tail", b"")
            kind = 3 if how.get("tail") else 2
            body = struct.pack("<HI", how.get("body_type", kind), len(body)) + body
        signed = header + body
        r, s = raw_sign(how.get("signing_key", self.ak), signed)
        ak = how.get("ak", point(self.ak))
        auth = how.get("auth", bytes(32))
        qe = self._qe_report(how.get("bound", hashlib.sha256(ak + auth).digest()), how)
        qr, qs = raw_sign(how.get("pck_key", self.pck.key), qe)
        chain = how.get("chain", self.chain)
        inner = qe + _pair(qr, qs) + struct.pack("<H", how.get("auth_size", len(auth))) + auth
        inner += struct.pack("<HI", how.get("chain_type", 5), len(chain)) + chain
        outer = _pair(r, s) + ak + struct.pack("<HI", how.get("cert_type", 6), len(inner)) + inner
        return signed + struct.pack("<I", how.get("size", len(outer))) + outer

    def _qe_report(self, bound: bytes, how: dict) -> bytes:
        return b"".join(
            (
                bytes(16), how.get("misc", bytes(4)), bytes(28),
                how.get("qe_attributes", b"\x11" + bytes(15)), bytes(32), bytes(32),
                how.get("qe_signer", _QE_SIGNER), bytes(96),
                struct.pack("<HH", how.get("qe_product", 2), how.get("qe_svn", 8)),
                bytes(60), bound.ljust(64, b"\0"),
            )
        )  # fmt: skip

    def signed(self, name: str, value: dict | bytes, signer: Authority | None = None) -> bytes:
        """A document as Intel's service sends it."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        signature = _pair(*raw_sign((signer or self.signer).key, body)).hex().encode()
        return b'{"' + name.encode() + b'":' + body + b',"signature":"' + signature + b'"}'

    def tcb_info(self, levels: list[dict] | None = None, **changes) -> bytes:
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "ff" * 8}
        status = changes.pop("module_status", "UpToDate")
        value = {
            "id": "TDX", "version": 3, "issueDate": stamp(-1), "nextUpdate": stamp(29),
            "fmspc": FMSPC.hex(), "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": 17,
            "tdxModule": module,
            "tdxModuleIdentities": [
                {"id": "TDX_01"} | module | {
                    "tcbLevels": [isv_level(5, status), isv_level(2, "OutOfDate")]
                }
            ],
            "tcbLevels": levels or [
                tcb_level("UpToDate"),
                tcb_level("OutOfDate", pce=5, advisoryIDs=["INTEL-SA-00106"]),
            ],
        }  # fmt: skip
        return self.signed("tcbInfo", value | changes)

    def qe_identity(self, **changes) -> bytes:
        value = {
            "id": "TD_QE", "version": 2, "issueDate": stamp(-1), "nextUpdate": stamp(29),
            "tcbEvaluationDataNumber": 17, "miscselect": "00" * 4, "miscselectMask": "ff" * 4,
            "attributes": "11" + "00" * 15, "attributesMask": "fb" + "ff" * 7 + "00" * 8,
            "mrsigner": _QE_SIGNER.hex(), "isvprodid": 2,
            "tcbLevels": [isv_level(8, "UpToDate"), isv_level(4, "OutOfDate")],
        }  # fmt: skip
        return self.signed("enclaveIdentity", value | changes)

    def collateral(self, **changes) -> dict[str, bytes]:
        """What a bundle carries beside the quote."""
        return {
            "tcb_info": self.tcb_info(),
            "qe_identity": self.qe_identity(),
            "root_crl": self.root.crl(),
            "pck_crl": self.authority.crl(),
            "tcb_signing_chain": self.signer.pem,
        } | changes


def _pair(r: int, s: int) -> bytes:
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")
