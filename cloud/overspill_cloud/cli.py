"""`overspill-cloud`: its verbs; here those for enrolment codes, policies and devices."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from overspill.errors import MissingExtra, UsageError
from overspill.terminal import Verbs, run_app
from overspill_cloud import tpm_command
from overspill_cloud.cli_db import db
from overspill_cloud.cli_options import (
    AttesterOption,
    DatabaseOption,
    JsonOption,
    StateOption,
    WeightsOption,
    iso,
    report,
    state_folder,
)
from overspill_cloud.cli_serve import serve
from overspill_cloud.fleet.commands import fleet
from overspill_cloud.ops.commands import doctor, plan

if TYPE_CHECKING:
    from overspill_cloud.store import Store

app = typer.Typer(
    cls=Verbs,
    name="overspill-cloud",
    help="Host models that prove what they run on, for enrolled devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
devices = typer.Typer(
    cls=Verbs, no_args_is_help=True, help="List the enrolled devices, and revoke one."
)
app.add_typer(devices, name="devices")
app.add_typer(fleet, name="fleet")
app.command()(plan)
app.command()(doctor)
app.command()(serve)
app.add_typer(tpm_command.app, name="tpm")
app.add_typer(db, name="db")


@app.callback()
def _needs_the_extra() -> None:
    if find_spec("sqlalchemy") is None:
        raise MissingExtra("The cloud service", "cloud")


DeviceArgument = Annotated[str, typer.Argument(help="The thumbprint, or its beginning.")]


@app.command("enroll-code")
def enroll_code(
    state: StateOption = None,
    database: DatabaseOption = None,
    ttl_hours: Annotated[float, typer.Option(min=0.01, help="Valid for so long.")] = 24.0,
    as_json: JsonOption = False,
) -> None:
    """Make a one-time code with which one device can enrol itself."""
    store = _store(state, database)
    expires = int(time.time() + ttl_hours * 3600)
    code = store.new_code(expires)
    store.close()
    report({"code": code, "expires": iso(expires)}, code, as_json)


@app.command()
def policy(
    model: Annotated[list[str], typer.Option("--model", help="NAME=FILE; may be repeated.")],
    weights: WeightsOption = None,
    state: StateOption = None,
    attester: AttesterOption = "auto",
) -> None:
    """Print the trust policy (TOML) with which clients accept this node and these models."""
    from overspill_cloud.app import parse_model, with_weights
    from overspill_cloud.client_policy import client_policy

    folder = state_folder(state)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    models = with_weights([parse_model(text) for text in model], weights or ())
    typer.echo(client_policy(attester, folder, models), nl=False)


@app.command()
def closed(
    open_port: Annotated[
        list[int] | None, typer.Option(help="A port that is meant to be open; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Say how closed this machine is: what a node on hardware demands before it serves. Exit 0
    when all is closed, else 4."""
    from overspill.trust.closed import CLOSED_AT_START
    from overspill_cloud.closed import look
    from overspill_cloud.machine import Machine

    findings = look(Machine(), open_port or ())
    rows = [
        {"name": f.name, "closed": f.is_closed, "found": f.found, "mend": f.mend} for f in findings
    ]
    lines = [
        f"{f.name:<14} closed" if f.is_closed else f"{f.name:<14} OPEN: {f.found}. Mend: {f.mend}"
        for f in findings
    ]
    is_ready = all(f.is_closed for f in findings if f.name in CLOSED_AT_START)
    report({"ready": is_ready, "findings": rows}, "\n".join(lines), as_json)
    return 0 if is_ready else 4


@devices.command("list")
def list_devices(
    state: StateOption = None, database: DatabaseOption = None, as_json: JsonOption = False
) -> None:
    """All devices that were ever enrolled."""
    store = _store(state, database)
    rows = [
        {
            "device": device.thumbprint.hex(),
            "label": device.label,
            "enrolled": iso(device.enrolled_unix),
            "expires": iso(device.not_after_unix),
            "revoked": None if device.revoked_unix is None else iso(device.revoked_unix),
            "quota_tokens": device.quota_tokens,
        }
        for device in store.devices()
    ]
    store.close()
    lines = (
        f"{row['device']}  {row['label'] or '-'}  until {row['expires']}"
        + (f"  REVOKED {row['revoked']}" if row["revoked"] else "")
        for row in rows
    )
    report({"devices": rows}, "\n".join(lines) or "No device is enrolled.", as_json)


@devices.command("revoke")
def revoke_device(
    device: DeviceArgument,
    state: StateOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse a device from now on; a running node sees it at its next request."""
    store = _store(state, database)
    name = _the_device(store, device)
    store.revoke(name, int(time.time()))
    store.close()
    report({"revoked": name.hex()}, f"Revoked {name.hex()}.", as_json)


@devices.command("quota")
def device_quota(
    device: DeviceArgument,
    tokens: Annotated[
        int | None, typer.Argument(min=0, help="Tokens a period; left out: the node's default.")
    ] = None,
    state: StateOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a device a quota of its own; a running node sees it at its next request."""
    store = _store(state, database)
    name = _the_device(store, device)
    store.set_quota(name, tokens)
    store.close()
    what = "the node's default" if tokens is None else f"{tokens} tokens a period"
    report({"device": name.hex(), "quota_tokens": tokens}, f"{name.hex()}: {what}.", as_json)


def _the_device(store: Store, begins: str) -> bytes:
    """The one device whose thumbprint begins so. Raises ``UsageError``."""
    found = [d for d in store.devices() if d.thumbprint.hex().startswith(begins.lower())]
    if len(found) != 1:
        store.close()
        what = "More than one device begins" if found else "No device begins"
        raise UsageError(f"{what} with '{begins}'.", mend="See: overspill-cloud devices list")
    return found[0].thumbprint


def run() -> None:
    """Entry point: every error is one line, or one JSON document, and its exit code."""
    sys.exit(run_app(app, "overspill-cloud", sys.argv[1:]))


def _store(folder: Path | None, database: str | None) -> Store:
    from overspill_cloud.store import Store

    return Store(state_folder(folder), database)
