"""A look-alike of each vendor's PKI, and the evidence it makes: fixed keys, fixed clock.

Everything has the structure of the real thing and verifies under these roots alone; the production
verifier refuses all of it. Signatures are deterministic, so the same call gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

NOW = 1_800_000_000
CLOCK = datetime.fromtimestamp(NOW, UTC)
P256, P384 = ec.SECP256R1(), ec.SECP384R1()
CHIP = bytes(range(64))
TURIN_CHIP = bytes(range(1, 9)).ljust(64, b"\0")
MEASUREMENT = hashlib.sha384(b"the released image").digest()
_HASH = {"secp256r1": SHA256(), "secp384r1": SHA384()}
_RSA_P = int(
    "e1451372f5ebc438d2a3c9f9146e907f6cbcb28a650adf1800781e004f91941dd6129017d02382bf62e4412a"
    "43cd6a790233767d1f280265a1b7b1487e6181e6d2a41a3301ae530ecb40d487a2f36a951c65772b43dfca1a"
    "a6c3759275ca3b25f642c68ddba4cb96b6ef0fd7b6354a14c980f3f74a5273d4a5e98f25697e0c17",
    16,
)
_RSA_Q = int(
    "dd5fb3dd8a63c25523cf1de873ebc7db54ef39e4db74bd543202816b0df59d80e7a1dc144832b68066ac7113"
    "fd81fe39bf86d78470c80b85b02ae3eee20ddfe62f344ab6270d1e6de7400b518297bc9a6c6618763a8d1530"
    "4e4af98ddf1f236167638d7b6803fabb8383ef0c3e163e5024a98df829edb0663d6a2d1e30331fad",
    16,
)


def key(seed: str, curve: ec.EllipticCurve = P384) -> ec.EllipticCurvePrivateKey:
    """The private key of a name."""
    digest = hashlib.sha512(seed.encode()).digest()
    return ec.derive_private_key(1 + int.from_bytes(digest[:31], "big"), curve)


def rsa_key() -> rsa.RSAPrivateKey:
    """One fixed RSA key of 2,048 bits."""
    d = pow(65537, -1, (_RSA_P - 1) * (_RSA_Q - 1))
    public = rsa.RSAPublicNumbers(65537, _RSA_P * _RSA_Q)
    return rsa.RSAPrivateNumbers(
        _RSA_P, _RSA_Q, d, d % (_RSA_P - 1), d % (_RSA_Q - 1), pow(_RSA_Q, -1, _RSA_P), public
    ).private_key()


def raw_sign(private: ec.EllipticCurvePrivateKey, message: bytes) -> tuple[int, int]:
    """r and s, with the hash of the curve's size, without randomness."""
    algorithm = ec.ECDSA(_HASH[private.curve.name], deterministic_signing=True)
    return decode_dss_signature(private.sign(message, algorithm))


def point(private: ec.EllipticCurvePrivateKey) -> bytes:
    """x || y."""
    return private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def tlv(tag: int, *parts: bytes) -> bytes:
    """A DER element."""
    body = b"".join(parts)
    if len(body) < 128:
        size = bytes((len(body),))
    else:
        digits = len(body).to_bytes(1 if len(body) < 256 else 2, "big")
        size = bytes((0x80 + len(digits),)) + digits
    return bytes((tag,)) + size + body


def oid(dotted: str) -> bytes:
    """An object identifier, with its header."""
    arcs = [int(arc) for arc in dotted.split(".")]
    out = b""
    for arc in (40 * arcs[0] + arcs[1], *arcs[2:]):
        chunk = [arc & 0x7F]
        while arc := arc >> 7:
            chunk.append(arc & 0x7F | 0x80)
        out += bytes(reversed(chunk))
    return tlv(6, out)


def number(value: int) -> bytes:
    """An INTEGER."""
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass
class Authority:
    """Somebody with a key who issues certificates and CRLs."""

    title: str
    curve: ec.EllipticCurve = P384
    issuer: Authority | None = None
    seed: str = ""
    serial: int = 7
    extensions: tuple[tuple[str, bytes], ...] = ()
    is_authority: bool = True
    from_days: int = -100
    to_days: int = 100

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        return key(self.seed or self.title, self.curve)

    @property
    def der(self) -> bytes:
        signer = self.issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(self.title))
            .issuer_name(name(signer.title))
            .serial_number(self.serial)
            .not_valid_before(CLOCK + timedelta(days=self.from_days))
            .not_valid_after(CLOCK + timedelta(days=self.to_days))
            .public_key(self.key.public_key())
        )
        if self.is_authority:
            builder = builder.add_extension(x509.BasicConstraints(True, None), True)
        for dotted, value in self.extensions:
            found = x509.UnrecognizedExtension(x509.ObjectIdentifier(dotted), value)
            builder = builder.add_extension(found, False)
        return builder.sign(
            signer.key, _HASH[signer.curve.name], ecdsa_deterministic=True
        ).public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return x509.load_der_x509_certificate(self.der).public_bytes(Encoding.PEM)

    def crl(self, *revoked: int, days: int = 10, from_days: int = -1) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name(self.title))
            .last_update(CLOCK + timedelta(days=from_days))
            .next_update(CLOCK + timedelta(days=days))
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(CLOCK)
            builder = builder.add_revoked_certificate(entry.build())
        made = builder.sign(self.key, _HASH[self.curve.name], ecdsa_deterministic=True)
        return made.public_bytes(Encoding.DER)


# --- AMD --------------------------------------------------------------------------------------

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


# --- Intel ------------------------------------------------------------------------------------

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


# --- NVIDIA -----------------------------------------------------------------------------------

DRIVER, VBIOS = "570.00", "96.00.9F.00.01"


@dataclass
class Nvidia:
    """NVIDIA's root and one GPU."""

    seed: str = ""
    firmware: bytes = field(default_factory=lambda: hashlib.sha384(b"firmware").digest())
    device_id: bytes | None = None

    def __post_init__(self) -> None:
        root = "NVIDIA Device Identity CA"
        self.root = Authority(root, seed=self.seed + root)
        self.authority = Authority("NVIDIA GH100 Identity", issuer=self.root, seed=self.seed + "i")
        made = tlv(
            0x30,
            number(1),
            tlv(0x30, oid("1.2.840.10045.2.1")),
            tlv(0x30, oid("2.16.840.1.101.3.4.2.2"), tlv(4, self.firmware)),
        )
        self.leaf = Authority(
            "GH100 A01 GSP FMC LF",
            issuer=self.authority,
            seed=self.seed + "leaf",
            is_authority=False,
            extensions=(("2.23.133.5.4.1", self.device_id or made),),
        )

    @property
    def chain(self) -> bytes:
        return self.leaf.pem + self.authority.pem + self.root.pem

    def report(self, nonce: bytes = bytes(32), **how) -> bytes:
        """Request and response; ``how`` changes parts."""
        request = bytes((how.get("version", 0x11), how.get("code", 0xE0), 1, 0xFF)) + nonce + b"\0"
        blocks = how.get(
            "blocks",
            b"".join(
                struct.pack("<BBHBH", n, 1, 51, 1, 48) + hashlib.sha384(bytes([n])).digest()
                for n in range(1, 5)
            ),
        )
        fields = {
            3: how.get("driver", DRIVER).encode() + b"\0",
            6: how.get("vbios", bytes.fromhex("009f009601000000")),
            17: b"1010\0",
            18: b"0200\0",
            15: b"882\0",
            20: self.firmware,
        } | how.get("fields", {})
        opaque = b"".join(
            struct.pack("<HH", kind, len(value)) + value
            for kind, value in fields.items()
            if value is not None
        )
        response = bytes((0x11, how.get("answer", 0x60), 0, 0, how.get("count", 4)))
        response += len(blocks).to_bytes(3, "little") + blocks + bytes(range(32))
        response += struct.pack("<H", how.get("opaque_size", len(opaque))) + opaque
        r, s = raw_sign(self.leaf.key, request + response)
        return request + response + r.to_bytes(48, "big") + s.to_bytes(48, "big")


_SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
_DSIG = "http://www.w3.org/2000/09/xmldsig#"
_SHA384 = "http://www.w3.org/2001/04/xmldsig-more#sha384"
_C14N = "http://www.w3.org/2006/12/xml-c14n11"


def rim(version: str = DRIVER, values: dict[int, bytes] | None = None, **how) -> bytes:
    """A reference manifest, written out in its canonical form by hand."""
    root = Authority("NVIDIA CoRIM signing Root CA", seed=how.get("seed", "") + "rim root")
    signer = Authority("RIM signer", how.get("curve", P384), root, "rim", is_authority=False)
    values = values or {n: hashlib.sha384(bytes([n + 1])).digest() for n in range(2)}
    resources = how.get("resources") or "".join(
        f'<Resource active="True" alternatives="1" index="{n}" h:Hash0="{value.hex()}"></Resource>'
        for n, value in values.items()
    )
    head = f'<SoftwareIdentity xmlns="{_SWID}" xmlns:h="http://www.w3.org/2001/04/xmlenc#sha384">'
    head = how.get("head", head)
    body = how.get("body") or (
        f'<Meta colloquialVersion="{version}"></Meta><Payload>{resources}</Payload>'
    )
    tail = "</SoftwareIdentity>"
    digest = base64.b64encode(hashlib.sha384(f"{head}{body}{tail}".encode()).digest()).decode()
    inner = (
        f'<ds:CanonicalizationMethod Algorithm="{how.get("c14n", _C14N)}">'
        "</ds:CanonicalizationMethod>"
        '<ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384">'
        f'</ds:SignatureMethod><ds:Reference URI="{how.get("uri", "")}"><ds:Transforms>'
        f'<ds:Transform Algorithm="{_DSIG}enveloped-signature"></ds:Transform>'
        f'<ds:Transform Algorithm="{_C14N}"></ds:Transform></ds:Transforms>'
        f'<ds:DigestMethod Algorithm="{_SHA384}"></ds:DigestMethod>'
        f"<ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
    )
    scope = f'xmlns="{_SWID}" xmlns:ds="{_DSIG}" xmlns:h="http://www.w3.org/2001/04/xmlenc#sha384"'
    r, s = raw_sign(key("rim", P384), f"<ds:SignedInfo {scope}>{inner}".encode())
    value = base64.b64encode(r.to_bytes(48, "big") + s.to_bytes(48, "big")).decode()
    chain = "".join(
        f"<ds:X509Certificate>{base64.b64encode(one.der).decode()}</ds:X509Certificate>"
        for one in how.get("chain", (signer, root))
    )
    signature = (
        f'<ds:Signature xmlns:ds="{_DSIG}"><ds:SignedInfo>{inner}'
        f"<ds:SignatureValue>{value}</ds:SignatureValue>"
        f"<ds:KeyInfo><ds:X509Data>{chain}</ds:X509Data></ds:KeyInfo></ds:Signature>"
    )
    return f"{head}{body}{signature * how.get('signatures', 1)}{tail}".encode()


# --- TPM --------------------------------------------------------------------------------------

_GLOBAL = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
GOOD_AK = 0x00050072  # fixedTPM fixedParent sensitiveDataOrigin userWithAuth restricted sign


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def variable(text: str, value: bytes) -> bytes:
    """UEFI_VARIABLE_DATA."""
    encoded = text.encode("utf-16-le")
    return _GLOBAL + struct.pack("<QQ", len(text), len(value)) + encoded + value


def event(pcr: int, kind: int, data: bytes, digest: bytes | None = None) -> bytes:
    """TCG_PCR_EVENT2 with one SHA-256 digest."""
    digest = hashlib.sha256(data).digest() if digest is None else digest
    head = struct.pack("<IIIH", pcr, kind, 1, 0x000B)
    return head + digest + struct.pack("<I", len(data)) + data


def spec_id(banks: tuple[tuple[int, int], ...] = ((0x000B, 32),)) -> bytes:
    """The first event, which describes the log."""
    body = b"Spec ID Event03\0" + bytes(4) + b"\0\2\0\2" + struct.pack("<I", len(banks))
    body += b"".join(struct.pack("<HH", *bank) for bank in banks) + b"\0"
    return struct.pack("<II", 0, 3) + bytes(20) + struct.pack("<I", len(body)) + body


def event_log(secure_boot: bytes | None = b"\1", *more: bytes) -> bytes:
    """A firmware's log: secure boot's state, the separator, and what a test adds."""
    said = (
        [] if secure_boot is None else [event(7, 0x80000001, variable("SecureBoot", secure_boot))]
    )
    locality = event(0, 3, b"StartupLocality\0\3", bytes(32))
    start = [spec_id(), locality, event(0, 8, b"firmware 1"), *said]
    return b"".join([*start, event(7, 4, bytes(4)), event(14, 0xD, b"a boot loader's"), *more])


def attest(data: bytes, values: dict[int, bytes], **how) -> bytes:
    """TPMS_ATTEST over registers."""
    selected = sorted(values)
    digest = hashlib.sha256(b"".join(values[pcr] for pcr in selected)).digest()
    bitmap = sum(1 << pcr for pcr in selected).to_bytes(3, "little")
    return (
        struct.pack(">IH", how.get("magic", 0xFF544347), how.get("kind", 0x8018))
        + sized(b"\0\x0b" + bytes(32))
        + sized(data)
        + struct.pack(">QIIBQ", 1, 2, 3, 1, 4)
        + struct.pack(">IHB", 1, how.get("bank", 0x000B), 3)
        + bitmap
        + sized(digest)
    )


def ecc_public(private: ec.EllipticCurvePrivateKey, attributes: int = GOOD_AK, **how) -> bytes:
    """TPMT_PUBLIC of an ECDSA key."""
    raw = point(private)
    half, curve = len(raw) // 2, 3 if len(raw) == 64 else 4
    head = struct.pack(">HHI", how.get("kind", 0x23), how.get("name_alg", 0x0B), attributes)
    scheme = struct.pack(
        ">HHHHH", how.get("symmetric", 0x10), how.get("scheme", 0x18), how.get("hash", 0x0B),
        how.get("curve", curve), 0x10,
    )  # fmt: skip
    return head + sized(b"") + scheme + sized(raw[:half]) + sized(raw[half:])


def rsa_public(private: rsa.RSAPrivateKey, attributes: int = GOOD_AK, **how) -> bytes:
    """TPMT_PUBLIC of an RSASSA key."""
    modulus = private.public_key().public_numbers().n.to_bytes(256, "big")
    head = struct.pack(">HHI", 1, 0x0B, attributes) + sized(b"")
    middle = struct.pack(">HHHHI", 0x10, how.get("scheme", 0x14), 0x0B, how.get("bits", 2048), 0)
    return head + middle + sized(how.get("modulus", modulus))


def ecc_signature(private: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """TPMT_SIGNATURE, ECDSA with SHA-256."""
    algorithm = ec.ECDSA(SHA256(), deterministic_signing=True)
    r, s = decode_dss_signature(private.sign(message, algorithm))
    size = (private.curve.key_size + 7) // 8
    return struct.pack(">HH", 0x18, 0x0B) + sized(r.to_bytes(size)) + sized(s.to_bytes(size))


def rsa_signature(private: rsa.RSAPrivateKey, message: bytes) -> bytes:
    """RSASSA with SHA-256, bare."""
    return private.sign(message, padding.PKCS1v15(), SHA256())


def runtime_data(private: rsa.RSAPrivateKey, **how) -> bytes:
    """The JSON inside an HCL report."""

    def b64(value: int) -> str:
        raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    numbers = private.public_key().public_numbers()
    jwk = {"kid": "HCLAkPub", "kty": "RSA", "e": b64(numbers.e), "n": b64(numbers.n)}
    value = {"keys": [jwk | how.get("jwk", {})], "vm-configuration": {"secure-boot": True}}
    return json.dumps(value | how.get("value", {})).encode()


def hcl_report(report: bytes, runtime: bytes, **how) -> bytes:
    """The HCL's envelope, with the zeros of its fixed buffer."""
    head = how.get("magic", b"HCLA") + struct.pack("<I", 2) + bytes(24)
    sizes = struct.pack(
        "<5I", len(runtime) + 20, 1, how.get("kind", 2), how.get("hash", 1),
        how.get("size", len(runtime)),
    )  # fmt: skip
    return head + report + sizes + runtime + how.get("after", bytes(64))
