"""Check a stored receipt offline: who signed it, under which verified configuration, for what."""

from __future__ import annotations

import hashlib

from overspill.errors import DeviceRejected, EvidenceRejected, ReceiptInvalid
from overspill.receipt_records import KeptEvidence, Verdict, receipt_id, signed_bytes
from overspill.sealing.receipt import ReceiptClaims, open_receipt
from overspill.sealing.signing import verify_signature
from overspill.trust.nkc import NodeKeyConfig
from overspill.trust.policy import TrustPolicy
from overspill.trust.verifier import Appraisal, Context, appraise
from overspill.types.reply import ReceiptRecord


def verify_receipt(record: ReceiptRecord) -> ReceiptClaims:
    """What the receipt says, once everything kept beside it fits.

    Raises ``ReceiptInvalid`` when (1) the configuration kept with it does not decode or names
    another receipt key, (2) the signature does not verify, (3) it is for another configuration,
    stream or time, (4) the device did not sign what is kept, or (5) the evidence or the verdict is
    of another configuration. The stream's hash covers the key that the request was sealed with;
    ``request_id`` is the app's own name for the request and never leaves. Assurance, release and
    measurement are what the verifier said when the answer came, which :func:`appraise_kept` asks
    it again; they are not in the receipt, because the node cannot say them.
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
    _same("name", receipt_id(record.data), record.id)
    nkc_sha256 = hashlib.sha256(record.node_key_config).digest()
    _same("node configuration", claims.nkc_sha256, nkc_sha256)
    _same("stream", claims.th, record.transcript_th)
    _same("time", claims.unix_s, record.unix_s)
    if not config.not_before <= claims.unix_s <= config.not_after:
        raise ReceiptInvalid("The receipt's time lies outside its key's validity.")
    # (4) the device's own signature over all that is kept
    if record.device_public_der or record.device_signature or record.evidence or record.verdict:
        _check_device(record)
        # (5) evidence and verdict
        _check_kept(record, config)
    return claims


def appraise_kept(record: ReceiptRecord, policy: TrustPolicy) -> Appraisal:
    """The kept evidence through the verifier once more, as of the receipt's time, under ``policy``.

    Raises ``ReceiptInvalid`` where no evidence was kept, or the verifier says another assurance
    than the record does.
    """
    if not record.evidence:
        raise ReceiptInvalid("No evidence was kept beside this receipt.")
    kept = KeptEvidence.decode(record.evidence)
    context = Context(
        now_unix=record.unix_s,
        address=kept.address,
        is_local=kept.is_local,
        nonce=kept.nonce or None,
    )
    appraisal = appraise(kept.bundle, context, policy)
    if appraisal.result is not None:
        again = Verdict.of(appraisal.result)
        said = Verdict.decode(record.verdict)
        for name in ("assurance", "evidence_type", "release", "release_id", "measurement"):
            _same(name.replace("_", " "), getattr(said, name), getattr(again, name))
    return appraisal


def _check_device(record: ReceiptRecord) -> None:
    try:
        verify_signature(record.device_public_der, record.device_signature, signed_bytes(record))
    except (DeviceRejected, OverflowError) as error:
        raise ReceiptInvalid("What is kept is not what this device signed.") from error


def _check_kept(record: ReceiptRecord, config: NodeKeyConfig) -> None:
    kept, verdict = KeptEvidence.decode(record.evidence), Verdict.decode(record.verdict)
    _same("evidence", kept.bundle.node_key_config, record.node_key_config)
    _same("assurance", verdict.assurance, record.assurance)
    release = config.release_id.hex() if any(config.release_id) else ""
    _same("release", verdict.release_id, release)


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ReceiptInvalid(f"The receipt is for another {what}.")
