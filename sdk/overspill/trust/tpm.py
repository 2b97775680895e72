"""``dev-tpm-software``: the whole TPM flow over a software TPM. FOR DEVELOPMENT ONLY.

Evidence data is ``"OVST" | u8 version = 1 | nonce 32 | u16 + AK (TPMT_PUBLIC) |
u16 + quote (TPMS_ATTEST) | u16 + signature (TPMT_SIGNATURE) | u16 + activation (64)``; collateral
``ek_certificate`` is DER.

The chain, from the policy's root to the measured log: a development authority issued the EK's
certificate; it saw the TPM that holds that EK activate a credential for the AK, and signed
``"overspill/ak-activation/v1" || 0x00 || SHA-256(EK certificate) || AK name``; the AK cannot leave
the TPM and signs nothing that was made outside; it quoted registers that the log replays into, over
this configuration and nonce.

A software TPM's state is a file: this proves the flow, not the machine. Its type is not the one of
hardware TPMs, whose roots are vendors' and in another store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from overspill.errors import EvidenceRejected
from overspill.trust import tpm_structures as tpm
from overspill.trust.base import Subject, check_binding, refuse_collateral, rejected, warn_of
from overspill.trust.nkc import qualifying_data
from overspill.trust.tpm_raw import check_attributes
from overspill.types.binary import ByteReader, prefixed
from overspill.types.evidence import Assurance, Evidence

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from overspill.trust.policy import TrustPolicy

TYPE: Final = "dev-tpm-software"
EK_CERTIFICATE: Final = "ek_certificate"
EK_USAGE: Final = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate, which an endorsement key's certificate has to name."""

HEAD: Final = b"OVST\x01"
_ACTIVATION_LABEL: Final = b"overspill/ak-activation/v1\x00"
_MAX_PART_BYTES: Final = 2048


@dataclass(frozen=True, slots=True)
class TpmEvidence:
    """The evidence's parts: nothing is believed yet."""

    nonce: bytes
    ak_public: bytes
    quote: bytes
    signature: bytes
    activation: bytes

    def encode(self, head: bytes = HEAD) -> bytes:
        """The evidence data, of the type that ``head`` stands for."""
        parts = (self.ak_public, self.quote, self.signature, self.activation)
        return head + self.nonce + b"".join(prefixed(2, part) for part in parts)

    @classmethod
    def decode(cls, data: bytes, head: bytes = HEAD) -> TpmEvidence:
        """Strict decoding. Raises ``EvidenceRejected("evidence_malformed")``."""
        reader = ByteReader(data, _malformed)
        if reader.take(len(head), "the head") != head:
            raise _malformed("a head of another kind or version")
        nonce = reader.take(32, "the nonce")
        names = ("the attestation key", "the quote", "the signature", "the activation")
        parts = [reader.prefixed(2, name, max_bytes=_MAX_PART_BYTES) for name in names]
        reader.end("the evidence")
        return cls(nonce, *parts)


def activation_message(ek_certificate: bytes, ak_name: bytes) -> bytes:
    """What an authority signs once a TPM has activated its credential: EK and AK live together."""
    return _ACTIVATION_LABEL + hashlib.sha256(ek_certificate).digest() + ak_name


class UnsafeSoftwareTpmVerifier:
    """Accepts quotes of software TPMs under development authorities that the policy names."""

    evidence_type = TYPE
    dev = True
    assurance = Assurance.NONE

    def check(self, evidence: Evidence, subject: Subject, policy: TrustPolicy) -> Mapping[str, str]:
        """See :class:`~overspill.trust.base.EvidenceVerifier`."""
        # 8.1 and 8.2 Shape
        refuse_collateral(evidence, frozenset({EK_CERTIFICATE}))
        parts = TpmEvidence.decode(evidence.data)
        quote = tpm.parse_quote(parts.quote)
        ak = tpm.parse_ecc_key(parts.ak_public)
        # 8.3 The endorsement key's root
        ek_der = evidence.collateral[EK_CERTIFICATE]
        root = _issuer(_load(ek_der), policy, subject.now_unix)
        # 8.4 The attestation key: what it is, and that it lives beside that endorsement key
        check_attributes(ak.attributes)
        _check_activation(root, parts.activation, activation_message(ek_der, ak.name))
        # 8.5 The quote's signature
        _check_signature(ak, parts)
        # 8.6 Binding to this configuration and nonce
        check_binding(
            quote.qualifying_data,
            parts.nonce,
            subject,
            dev=True,
            digest=qualifying_data,
            step="6",
        )
        # 8.7 The registers, replayed
        _check_registers(quote, subject.log.replay())
        warn_of(TYPE)
        return {
            "ek_certificate_sha256": hashlib.sha256(ek_der).hexdigest(),
            "ak_name": ak.name.hex(),
            "tpm": "software",
        }


def _load(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise rejected(
            "ek_certificate_malformed", "3", expected="a DER certificate", actual="something else"
        ) from error


def _issuer(ek: x509.Certificate, policy: TrustPolicy, now_unix: int) -> Ed25519PublicKey:
    """The key of the policy's authority that issued this EK certificate, valid now."""
    for der in policy.ek_roots:
        root = x509.load_der_x509_certificate(der)
        if _is_issued_by(ek, root):
            _check_validity(root, now_unix)
            _check_validity(ek, now_unix)
            _check_usage(ek)
            return cast("Ed25519PublicKey", root.public_key())  # the policy loads no other
    raise rejected(
        "ek_root_unknown",
        "3",
        expected="an endorsement key under [dev-tpm-software] ek_roots",
        actual="one of another issuer",
        mend="Name this node's development authority in the trust policy, for loopback only.",
    )


def _is_issued_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check_validity(certificate: x509.Certificate, now_unix: int) -> None:
    now = datetime.fromtimestamp(now_unix, UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise rejected(
            "ek_certificate_expired",
            "3",
            expected=f"a certificate valid at {now_unix}",
            actual=f"one valid until {int(certificate.not_valid_after_utc.timestamp())}",
        )


def _check_usage(ek: x509.Certificate) -> None:
    try:
        usages = list(ek.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        is_authority = ek.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        usages, is_authority = [], False
    if EK_USAGE not in usages or is_authority:
        raise rejected(
            "ek_certificate_usage", "3", expected="an EK certificate", actual="another kind"
        )


def _check_activation(root: Ed25519PublicKey, signature: bytes, message: bytes) -> None:
    try:
        root.verify(signature, message)
    except InvalidSignature as error:
        raise rejected(
            "ak_not_activated",
            "4",
            expected="the authority's word that this key lives beside this endorsement key",
            actual="a signature over something else",
        ) from error


def _check_signature(ak: tpm.EccKey, parts: TpmEvidence) -> None:
    signature = tpm.parse_signature(parts.signature)
    try:
        key = ec.EllipticCurvePublicNumbers(ak.x, ak.y, ec.SECP256R1()).public_key()
        der = encode_dss_signature(signature.r, signature.s)
        key.verify(der, parts.quote, ec.ECDSA(SHA256()))
    except (InvalidSignature, ValueError) as error:
        raise rejected(
            "evidence_signature", "5", expected="a valid signature", actual="one that is not"
        ) from error


def _check_registers(quote: tpm.Quote, expected: Mapping[int, bytes]) -> None:
    """Exactly the registers that the log extends, in the SHA-256 bank, at the replayed values.

    Anything else is refused: 16 and 23 can be reset at will, and an unexpected register is one
    whose value nobody vouches for.
    """
    if any(selection.hash_alg != tpm.ALG_SHA256 for selection in quote.selections):
        banks = ", ".join(f"{selection.hash_alg:#06x}" for selection in quote.selections)
        raise rejected("pcr_bank", "7", expected="the SHA-256 bank", actual=banks)
    selected = [pcr for selection in quote.selections for pcr in sorted(selection.pcrs)]
    if selected != sorted(expected):
        raise rejected(
            "pcr_selection", "7", expected=f"registers {sorted(expected)}", actual=str(selected)
        )
    digest = hashlib.sha256(b"".join(expected[pcr] for pcr in selected)).digest()
    if quote.pcr_digest != digest:
        raise rejected(
            "log_not_replayed",
            "7",
            expected="the registers that this log leads to",
            actual="others: something else was measured",
        )


def _malformed(what: str) -> EvidenceRejected:
    return rejected("evidence_malformed", "2", expected="TPM evidence", actual=what)
