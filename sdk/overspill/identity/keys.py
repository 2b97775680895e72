"""Device keys in software: Ed25519 (the default) or ES256, with an expiry and one stored form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Final, NoReturn

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from overspill.errors import ConfigurationError, UsageError

ED25519: Final = "ed25519"
ES256: Final = "es256"
DEFAULT_LIFETIME_S: Final = 180 * 24 * 3600
_VERSION: Final = 1
_FIELDS: Final = {"version", "not_after_unix", "private_key"}


class SoftwareKey:
    """A :class:`~overspill.identity.base.DeviceKey` whose private half is in this process."""

    def __init__(
        self, private_key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, not_after_unix: int
    ) -> None:
        self._private_key = private_key
        self.not_after_unix = not_after_unix
        self.public_der = private_key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        self.thumbprint = hashlib.sha256(self.public_der).digest()

    @classmethod
    def generate(cls, not_after_unix: int, algorithm: str = ED25519) -> SoftwareKey:
        """A new key. Raises ``UsageError`` for an algorithm other than ed25519 and es256."""
        makers: dict[str, Callable[[], Ed25519PrivateKey | ec.EllipticCurvePrivateKey]] = {
            ED25519: Ed25519PrivateKey.generate,
            ES256: lambda: ec.generate_private_key(ec.SECP256R1()),
        }
        if algorithm not in makers:
            raise UsageError(
                f"'{algorithm}' is no algorithm for device keys.", mend="Use ed25519 or es256."
            )
        return cls(makers[algorithm](), not_after_unix)

    @property
    def algorithm(self) -> str:
        """``ed25519`` or ``es256``."""
        return ED25519 if isinstance(self._private_key, Ed25519PrivateKey) else ES256

    def sign(self, data: bytes) -> bytes:
        """64 bytes over ``data``: Ed25519 (RFC 8032), or ES256 as ``r || s`` (RFC 7518)."""
        if isinstance(self._private_key, Ed25519PrivateKey):
            return self._private_key.sign(data)
        r, s = decode_dss_signature(self._private_key.sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def is_expired(self, now_unix: float) -> bool:
        """Whether the device should have rotated this key by ``now_unix``."""
        return now_unix >= self.not_after_unix

    def to_text(self) -> str:
        """The stored form, SECRET: JSON with the key as unencrypted PKCS #8 PEM."""
        pem = self._private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return json.dumps(
            {
                "version": _VERSION,
                "not_after_unix": self.not_after_unix,
                "private_key": pem.decode("ascii"),
            }
        )

    @classmethod
    def from_text(cls, text: str, place: str) -> SoftwareKey:
        """Reads the stored form strictly. Raises ``ConfigurationError`` naming ``place``."""
        try:
            return cls._parse(text)
        except (ValueError, TypeError, KeyError, RecursionError, UnsupportedAlgorithm) as error:
            raise ConfigurationError(
                f"What {place} holds is no device key of this version.",
                mend="Restore it, or remove it and enrol this device again.",
            ) from error

    @classmethod
    def _parse(cls, text: str) -> SoftwareKey:
        raw = json.loads(text)
        if set(raw) != _FIELDS or raw["version"] != _VERSION:
            raise ValueError("unknown fields or version")
        if type(raw["not_after_unix"]) is not int or not isinstance(raw["private_key"], str):
            raise ValueError("a field of the wrong type")
        key = load_pem_private_key(raw["private_key"].encode("ascii"), password=None)
        if isinstance(key, Ed25519PrivateKey):
            return cls(key, raw["not_after_unix"])
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1":
            return cls(key, raw["not_after_unix"])
        raise ValueError("neither Ed25519 nor P-256")

    def __repr__(self) -> str:
        return f"SoftwareKey({self.algorithm}, thumbprint={self.thumbprint.hex()[:16]}...)"

    def __reduce__(self) -> NoReturn:
        raise UsageError("A device key is stored through a KeyStore, never pickled.")
