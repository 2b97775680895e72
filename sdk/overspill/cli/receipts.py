"""`overspill receipts`: what the cloud signed for, checked offline."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer

from overspill.cli.common import Json, print_json
from overspill.config import load_settings
from overspill.receipts import verify_receipt
from overspill.state.receipts import ReceiptStore

ReceiptId = Annotated[str, typer.Argument(help="The receipt's id, or the beginning of it.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    group = typer.Typer(help="Receipts of what the cloud answered.", no_args_is_help=True)
    group.command("list")(list_receipts)
    group.command("show")(show)
    group.command("verify")(verify)
    app.add_typer(group, name="receipts")


def list_receipts(limit: Annotated[int, typer.Option(min=1)] = 20, as_json: Json = False) -> None:
    """List the newest receipts."""
    records = _store().list(limit)
    if as_json:
        print_json(records)
        return
    for record in records:
        print(f"{record.id[:12]}  {_when(record.unix_s)}  {record.assurance}  {record.node}")


def show(receipt_id: ReceiptId, as_json: Json = False) -> None:
    """Show what a receipt says, without judging it."""
    record = _store().get(receipt_id)
    if as_json:
        print_json(record)
        return
    print(f"receipt    {record.id}")
    print(f"request    {record.request_id}")
    print(f"node       {record.node}")
    print(f"time       {_when(record.unix_s)}")
    print(f"assurance  {record.assurance} (the verifier's word when the answer came)")


def verify(receipt_id: ReceiptId, as_json: Json = False) -> None:
    """Verify a receipt offline; exit 0 when everything kept with it fits, else 6."""
    record = _store().get(receipt_id)
    claims = verify_receipt(record)
    if as_json:
        print_json({"verified": True, "assurance": record.assurance, "claims": claims})
        return
    print(f"verified   {record.id}")
    print(f"model      {claims.model} (sha256 {claims.model_sha256.hex()})")
    print(f"usage      {claims.prompt_tokens} + {claims.completion_tokens} tokens")
    print(f"assurance  {record.assurance}")


def _store() -> ReceiptStore:
    return ReceiptStore(load_settings().places.state / "receipts.sqlite")


def _when(unix_s: int) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).isoformat(timespec="seconds")
