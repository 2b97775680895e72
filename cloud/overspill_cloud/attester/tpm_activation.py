"""How an attestation key comes to be believed: four steps between a node and who vouches for it.

The TPM's maker certified the EK; that another key lives in the same TPM only the TPM can show, by
opening a credential that was made for both (TPM 2.0 Library, Part 1, "Credential Protection").

1. the node: ``request`` - EK, its certificate, and the attestation key;
2. who vouches: ``challenge`` - checks the certificate, and makes a credential;
3. the node: ``answer`` - the TPM opens it;
4. who vouches: ``sign`` - it was the right one: the word that evidence then carries.

Between 2 and 4 nothing is kept: the challenge carries what it asks for, encrypted to its maker.
All four are JSON objects of base64 strings.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from overspill.errors import EvidenceRejected, UsageError
from overspill.trust.certificates import parse_certificate, read_pem
from overspill.trust.chain import Anchors, build_path
from overspill.trust.tpm import EK_USAGE, activation_message
from overspill.trust.tpm_keys import parse_public
from overspill.trust.tpm_raw import check_attributes
from overspill_cloud.attester.hardware_tpm import endorsement, read_optional
from overspill_cloud.attester.tpm_device import Tpm

Message = Mapping[str, str]

_CREDENTIAL_BYTES: Final = 32
_NAME_BYTES: Final = 34
_NONCE_BYTES: Final = 12
_LABEL: Final = b"overspill/ak-challenge/v1\x00"


def request(tpm: Tpm, folder: Path) -> Message:
    """Step 1, on the node. Raises ``ConfigurationError`` where the EK has no certificate."""
    ek, certificate = endorsement(tpm, folder)
    ak = tpm.attestation_key()
    try:
        return _message(
            ek_public=bytes(ek.public.marshal()),
            ek_certificate=certificate,
            ek_chain=read_optional(folder / "ek_chain.pem") or b"",
            ak_public=ak.public_bytes,
        )
    finally:
        tpm.forget(ak)
        tpm.forget(ek)


def challenge(
    asked: Message, key: Ed25519PrivateKey, roots: Sequence[bytes], now_unix: int
) -> Message:
    """Step 2. ``roots`` are the makers' certificates, DER.

    Raises ``EvidenceRejected`` for an EK that no root vouches for, or a key that is not fixed to
    its TPM; ``UsageError`` for a request that is none.
    """
    import tpm2_pytss as tss
    from tpm2_pytss.utils import make_credential

    certificate = _part(asked, "ek_certificate")
    leaf = parse_certificate(certificate)
    between, _ = read_pem(_part(asked, "ek_chain")) if _part(asked, "ek_chain") else ((), ())
    anchors = Anchors(tuple(parse_certificate(root) for root in roots), tuple(between))
    path = build_path(leaf, anchors, now_unix)
    if EK_USAGE.dotted_string not in path[0].usages:
        raise UsageError("That is no certificate of an endorsement key.", mend="Ask the node anew.")
    public = _ek_public(_part(asked, "ek_public"))
    if load_pem_public_key(bytes(public.to_pem())) != path[0].public_key:
        raise UsageError(
            "The certificate is another endorsement key's.", mend="Fetch the right one."
        )
    area = parse_public(_part(asked, "ak_public"))
    check_attributes(area.attributes)
    credential = secrets.token_bytes(_CREDENTIAL_BYTES)
    blob, secret = make_credential(public, credential, tss.TPM2B_NAME(area.name))
    nonce = secrets.token_bytes(_NONCE_BYTES)
    kept = credential + area.name + certificate
    return _message(
        blob=bytes(blob.marshal()),
        secret=bytes(secret.marshal()),
        kept=nonce + _cipher(key).encrypt(nonce, kept, None),
    )


def answer(tpm: Tpm, folder: Path, challenged: Message) -> Message:
    """Step 3, on the node: only the TPM with both keys can. Raises ``ConfigurationError``."""
    import tpm2_pytss as tss

    blob, _ = tss.TPM2B_ID_OBJECT.unmarshal(_part(challenged, "blob"))
    secret, _ = tss.TPM2B_ENCRYPTED_SECRET.unmarshal(_part(challenged, "secret"))
    ek, _ = endorsement(tpm, folder)
    ak = tpm.attestation_key()
    try:
        opened = tpm.activate(ek, ak, blob, secret)
    finally:
        tpm.forget(ak)
        tpm.forget(ek)
    return _message(credential=opened, kept=_part(challenged, "kept"))


def sign(answered: Message, key: Ed25519PrivateKey) -> bytes:
    """Step 4: 64 bytes, for the node's ``tpm/activation``. A policy names the key in
    ``activation_keys``.

    Raises ``EvidenceRejected`` (``ak_not_activated``) when the TPM opened another credential, and
    ``UsageError`` for an answer to another key's challenge.
    """
    sealed = _part(answered, "kept")
    try:
        kept = _cipher(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
    except (InvalidTag, ValueError) as error:
        raise UsageError(
            "The answer is not to a challenge of this key.", mend="Give the key that made it."
        ) from error
    credential, rest = kept[:_CREDENTIAL_BYTES], kept[_CREDENTIAL_BYTES:]
    name, certificate = rest[:_NAME_BYTES], rest[_NAME_BYTES:]
    if not secrets.compare_digest(credential, _part(answered, "credential")):
        raise EvidenceRejected(
            "ak_not_activated",
            "8.4",
            expected="the credential that was made for both keys",
            actual="another: the TPM does not hold the key that it shows",
            mend="Do not vouch for this node.",
        )
    return key.sign(activation_message(certificate, name))


def activation_key(key: Ed25519PrivateKey) -> str:
    """What a policy names in ``activation_keys``: the public half, hex."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def _cipher(key: Ed25519PrivateKey) -> ChaCha20Poly1305:
    raw = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    return ChaCha20Poly1305(hashlib.sha256(_LABEL + raw).digest())


def _ek_public(data: bytes) -> Any:
    import tpm2_pytss as tss

    try:
        return tss.TPM2B_PUBLIC.unmarshal(data)[0]
    except (tss.TSS2_Exception, ValueError) as error:
        raise UsageError("'ek_public' is no TPM2B_PUBLIC.", mend="Ask the node anew.") from error


def _message(**parts: bytes) -> Message:
    return {name: base64.b64encode(value).decode("ascii") for name, value in parts.items()}


def _part(message: Message, name: str) -> bytes:
    try:
        return base64.b64decode(message[name], validate=True)
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise UsageError(
            f"'{name}' is missing, or no base64.", mend="Give the whole file."
        ) from error
