"""A development authority for software TPMs: certifies their EKs and activates their AKs.

A vendor does the first at manufacture and an enrolment service the second. Here one key in the
node's own state folder does both, which is why all of this is for development only.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
from cryptography.x509.oid import NameOID

from overspill.errors import ConfigurationError
from overspill.trust.tpm import EK_USAGE, activation_message
from overspill_cloud.attester.keyfile import load_or_create_key
from overspill_cloud.attester.tpm_device import LoadedKey, Tpm

_LIFETIME = timedelta(days=365)
_BACKDATE = timedelta(hours=1)


class UnsafeDevAuthority:
    """An Ed25519 authority; ``root`` is the certificate that a policy has to name."""

    def __init__(self, private_key: Ed25519PrivateKey, root: x509.Certificate) -> None:
        self._private_key = private_key
        self.root = root

    @classmethod
    def generate(cls, private_key: Ed25519PrivateKey, now: datetime) -> UnsafeDevAuthority:
        """An authority of its own, valid for a year from ``now``."""
        name = _name("overspill development authority - proves nothing")
        builder = _builder(name, name, now).public_key(private_key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        return cls(private_key, builder.sign(private_key, None))

    @classmethod
    def from_files(cls, key: Path, root: Path) -> UnsafeDevAuthority:
        """The authority in these two files, made there at first start and when it has expired."""
        private_key = load_or_create_key(key)
        now = datetime.now(UTC)
        known = _load(root)
        if known is not None and known.not_valid_after_utc > now + _BACKDATE:
            if known.public_key() == private_key.public_key():
                return cls(private_key, known)
            raise ConfigurationError(
                f"{root} is not the certificate of {key}.", mend="Remove both to start anew."
            )
        authority = cls.generate(private_key, now)
        root.write_bytes(authority.root.public_bytes(Encoding.PEM))
        return authority

    def certify(self, ek: LoadedKey) -> bytes:
        """An endorsement certificate (DER) for a software TPM's key."""
        builder = _builder(_name("software TPM"), self.root.subject, datetime.now(UTC))
        builder = (
            builder.public_key(load_pem_public_key(ek.public_pem))  # type: ignore[arg-type]  # P-256
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(x509.ExtendedKeyUsage([EK_USAGE]), False)
        )
        return builder.sign(self._private_key, None).public_bytes(Encoding.DER)

    def activate(self, tpm: Tpm, ek: LoadedKey, ek_certificate: bytes, ak: LoadedKey) -> bytes:
        """Signs that ``ak`` lives beside ``ek``, once the TPM has opened a credential for both.

        Raises ``ConfigurationError`` when it opens another or none.
        """
        from tpm2_pytss.utils import make_credential

        credential = secrets.token_bytes(32)
        blob, secret = make_credential(ek.public, credential, ak.public.get_name())
        if tpm.activate(ek, ak, blob, secret) != credential:
            raise ConfigurationError(
                "The TPM does not hold the attestation key that it shows.",
                mend="Remove the software TPM's state and start again.",
            )
        return self._private_key.sign(activation_message(ek_certificate, ak.name))


def _builder(subject: x509.Name, issuer: x509.Name, now: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + _LIFETIME)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _load(path: Path) -> x509.Certificate | None:
    if not path.exists():
        return None
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} holds no certificate.", mend="Remove it to start anew."
        ) from error
