"""Check a stored receipt offline: who signed it, under which verified configuration, for what."""

from __future__ import annotations

import hashlib

from overspill.errors import EvidenceRejected, ReceiptInvalid
from overspill.sealing.receipt import ReceiptClaims, open_receipt
from overspill.trust.nkc import NodeKeyConfig
from overspill.types.reply import ReceiptRecord


def verify_receipt(record: ReceiptRecord) -> ReceiptClaims:
    """What the receipt says, once everything kept beside it fits.

    Raises ``ReceiptInvalid`` when (1) the configuration kept with it does not decode or names
    another receipt key, (2) the signature does not verify, or (3) it is for another
    configuration, stream or time. The stream's hash covers the key that the request was sealed
    with; ``request_id`` is the app's own name for the request and never leaves. The assurance
    in ``record`` is what the verifier said when the answer came; it is not in the receipt,
    because the node cannot say it.
    """
    # (1) the key that must have signed
    try:
        config = NodeKeyConfig.decode(record.node_key_config)
    except EvidenceRejected as error:
        raise ReceiptInvalid(f"The stored node configuration is damaged: {error}") from error
    _same("receipt key", config.receipt_public_key, record.receipt_public_key)
    # (2) its signature
    claims = open_receipt(record.data, config.receipt_public_key)
    # (3) what it is for
    nkc_sha256 = hashlib.sha256(record.node_key_config).digest()
    _same("node configuration", claims.nkc_sha256, nkc_sha256)
    _same("stream", claims.th, record.transcript_th)
    if not config.not_before <= claims.unix_s <= config.not_after:
        raise ReceiptInvalid("The receipt's time lies outside its key's validity.")
    return claims


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ReceiptInvalid(f"The receipt is for another {what}.")
