"""ML-DSA-44 (FIPS 204) through ``cryptography``, where its OpenSSL has it (3.5 and newer)."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from overspill.errors import LogInvalid


def is_supported() -> bool:
    """Whether this machine's ``cryptography`` knows ML-DSA-44."""
    try:
        public_of(bytes(32))
    except LogInvalid:
        return False
    return True


def public_of(seed: bytes) -> bytes:
    """The public key (1,312 bytes) of a 32-byte seed. Raises ``LogInvalid``."""
    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

        return MLDSA44PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw()
    except (ImportError, UnsupportedAlgorithm) as error:
        raise _unsupported() from error


def sign(seed: bytes, message: bytes) -> bytes:
    """A signature (2,420 bytes) with an empty context. Raises ``LogInvalid``."""
    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

        return MLDSA44PrivateKey.from_seed_bytes(seed).sign(message)
    except (ImportError, UnsupportedAlgorithm) as error:
        raise _unsupported() from error


def is_valid(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether this is the key's signature, with an empty context.

    Raises ``LogInvalid("ml_dsa_unsupported")`` where nobody here can tell: a policy that counts on
    such a key is not met in silence, and its refusal names the mend.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

        MLDSA44PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    except (ImportError, UnsupportedAlgorithm) as error:
        raise _unsupported() from error
    return True


def _unsupported() -> LogInvalid:
    return LogInvalid(
        "ml_dsa_unsupported",
        expected="a cryptography library that knows ML-DSA-44",
        actual="one that does not",
        mend="pip install --upgrade cryptography, or name Ed25519 witnesses in the policy.",
    )
