"""`overspill receipts`: what the cloud signed for, checked offline."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

from overspill.cli.common import Json, print_json
from overspill.cli.steps_table import print_steps
from overspill.config import load_settings
from overspill.errors import ReceiptInvalid
from overspill.receipt_records import Verdict
from overspill.receipts import appraise_kept, verify_receipt
from overspill.sealing.receipt import ReceiptClaims, read_claims
from overspill.state.receipts import ReceiptStore
from overspill.terminal import Verbs
from overspill.trust.policy import load_policy
from overspill.trust.verifier import Appraisal
from overspill.types.reply import ReceiptRecord

ReceiptId = Annotated[str, typer.Argument(help="The receipt's id, or the beginning of it.")]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--trust-policy", help="Also verify the kept evidence again, under this policy."),
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    group = typer.Typer(
        cls=Verbs,
        help="List, show and verify the receipts of what a cloud answered.",
        no_args_is_help=True,
    )
    group.command("list")(list_receipts)
    group.command("show")(show)
    group.command("verify")(verify)
    app.add_typer(group, name="receipts")


def list_receipts(limit: Annotated[int, typer.Option(min=1)] = 20, as_json: Json = False) -> None:
    """List the newest receipts, as they say themselves."""
    found = [_facts(record) for record in _store().list(limit)]
    if as_json:
        print_json(found)
        return
    for facts in found:
        words = (facts["id"][:12], facts["time"], facts["assurance"], facts["model"])
        print("  ".join((*words, facts["release"] or "unreleased", facts["node"])))


def show(receipt_id: ReceiptId, as_json: Json = False) -> None:
    """Show what a receipt says, without judging it."""
    facts = _facts(_store().get(receipt_id))
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def verify(receipt_id: ReceiptId, trust_policy: PolicyFile = None, as_json: Json = False) -> None:
    """Verify a receipt offline; exit 0 when everything kept with it fits, else 6.

    With a trust policy the evidence that was kept goes through the verifier once more, as of the
    receipt's own time.
    """
    record = _store().get(receipt_id)
    verify_receipt(record)
    appraisal = None
    if trust_policy is not None:
        appraisal = appraise_kept(record, load_policy(trust_policy))
    facts = _facts(record) | {"verified": True, "evidence_verified": _again(appraisal)}
    if as_json:
        steps = {} if appraisal is None else {"steps": appraisal.steps}
        print_json(facts | steps)
    else:
        if appraisal is not None:
            print_steps(appraisal.steps)
        _print(facts)
    if appraisal is not None and appraisal.rejection is not None:
        raise appraisal.rejection


def _again(appraisal: Appraisal | None) -> bool | None:
    return None if appraisal is None else appraisal.rejection is None


def _facts(record: ReceiptRecord) -> dict[str, Any]:
    """A record in plain words. What does not decode is left out: verifying says why."""
    facts: dict[str, Any] = {
        "id": record.id,
        "request_id": record.request_id,
        "node": record.node,
        "time": _when(record.unix_s),
        "assurance": record.assurance,
    }
    try:
        verdict = Verdict.decode(record.verdict)
    except ReceiptInvalid:
        verdict = Verdict()
    facts |= {
        "evidence_type": verdict.evidence_type,
        "release": verdict.release,
        "release_id": verdict.release_id,
        "measurement": verdict.measurement,
        "closed": verdict.closed,
        "policy_sha256": verdict.policy_sha256,
        "nkc_sha256": hashlib.sha256(record.node_key_config).hexdigest(),
        "device": hashlib.sha256(record.device_public_der).hexdigest()
        if record.device_public_der
        else "",
    }
    try:
        claims = read_claims(record.data)
    except ReceiptInvalid:
        return facts | {"model": "unreadable"}
    return facts | _said(claims)


def _said(claims: ReceiptClaims) -> dict[str, Any]:
    return {
        "model": claims.model,
        "model_sha256": claims.model_sha256.hex(),
        "adapter": claims.adapter,
        "adapter_sha256": claims.adapter_sha256.hex() if claims.adapter else "",
        "prompt_tokens": claims.prompt_tokens,
        "completion_tokens": claims.completion_tokens,
        "finish_reason": claims.finish_reason,
        "request_commitment": claims.request_commitment.hex(),
        "response_commitment": claims.response_commitment.hex(),
        "stream": claims.th.hex(),
    }


def _print(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if value not in ("", None):
            print(f"{name.replace('_', ' '):<20} {value}")


def _store() -> ReceiptStore:
    return ReceiptStore(load_settings().places.state / "receipts.sqlite")


def _when(unix_s: int) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).isoformat(timespec="seconds")
