"""Options that verbs share, and how they say what they did."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from overspill.config import default_places

StateOption = Annotated[
    Path | None, typer.Option("--state", help="Folder for devices, replay window and ledger.")
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        help="PostgreSQL that a fleet shares, in place of the folder's file: "
        "postgresql://USER@HOST/NAME (the password is read from ~/.pgpass).",
    ),
]
AttesterOption = Annotated[
    str,
    typer.Option(
        help="auto (what the machine has), sev-snp, tdx, hardware-tpm, pinned, dev or tpm[:TCTI]."
    ),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(help="What an upstream was started with: MODEL=PATH; may be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def state_folder(folder: Path | None) -> Path:
    """The folder that was asked for, or this user's own."""
    return folder or default_places().state / "cloud"


def report(facts: dict[str, Any], text: str, as_json: bool) -> None:
    """Say it as JSON or as text, at once."""
    typer.echo(json.dumps(facts) if as_json else text)
    sys.stdout.flush()


def iso(unix_s: int) -> str:
    """A moment as people and programs write it."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")
