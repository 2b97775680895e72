"""`overspill policy`: the rules that requests of this user are under, the administrator's first."""

from __future__ import annotations

import time
from typing import Any

import typer

from overspill.cli.calibrate import policy_app
from overspill.cli.common import Json, print_json, settings_for
from overspill.opening import open_routing_policy
from overspill.policy_lock import AdminPolicy, policy_lock
from overspill.types.chat import Privacy


def register(app: typer.Typer) -> None:
    """Have `policy` alone show what is in force; its verbs are those of `calibrate`."""
    del app  # `policy` is there already
    policy_app.callback(invoke_without_command=True)(show)


def show(context: typer.Context, as_json: Json = False) -> None:
    """Show the rules in force; check a calibrated routing policy."""
    if context.invoked_subcommand is not None:
        return
    settings = settings_for()
    above = policy_lock(settings).current()
    policy = open_routing_policy(settings)
    floor = settings.privacy.tightened_by(policy.floor)
    floor = floor.tightened_by(above.privacy if above and above.privacy else Privacy.ANY)
    document: dict[str, Any] = {
        "floor": floor,
        "administrator": above and above.as_dict(),
        "routing_policy": settings.routing_policy,
        "version": policy.version,
        "sha256": policy.sha256,
        "threshold": policy.threshold,
        "expired": policy.is_expired(int(time.time())),
        "cloud": settings.cloud and settings.cloud.address,
    }
    if as_json:
        print_json(document)
        return
    print("\n".join((*_above(above), *_own(document))))


def _above(above: AdminPolicy | None) -> list[str]:
    if above is None:
        return ["administrator: no rules on this machine"]
    lines = [f"administrator: {above.path} (sha256 {above.sha256[:16]}...)"]
    said: dict[str, Any] = {
        "floor": above.privacy,
        "clouds": None if above.clouds is None else ", ".join(above.clouds) or "none",
        "third parties": {None: None, True: "allowed", False: "off"}[above.third_parties],
        "models": None if above.models is None else ", ".join(above.models) or "none",
    }
    return lines + [f"  {name}: {value}" for name, value in said.items() if value is not None]


def _own(document: dict[str, Any]) -> list[str]:
    source = document["routing_policy"] or "built in"
    state = ", EXPIRED" if document["expired"] else ""
    return [
        f"floor in force: {document['floor']}",
        f"routing policy: {source} (version {document['version'] or '-'}{state})",
        f"cloud: {document['cloud'] or 'none is set'}",
    ]
