"""NVIDIA's roots, one GPU's measurements, and reference manifests."""

from __future__ import annotations

import base64
import hashlib
import struct
from dataclasses import dataclass, field

from .pki import P384, Authority, key, number, oid, raw_sign, tlv

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
