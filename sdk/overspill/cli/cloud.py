"""`overspill cloud`: look at a node's evidence, and enrol this device with it."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from overspill import __version__, event_loop
from overspill.cli.common import CloudAddress, Json, TrustPolicyFile, print_json, settings_for
from overspill.cli.steps_table import print_steps
from overspill.config import Settings
from overspill.errors import UsageError
from overspill.log_watch import appraise_remembering
from overspill.opening import (
    open_cloud,
    open_key_rotation,
    open_log_state,
    open_transport,
    open_trust_policy,
)
from overspill.terminal import Verbs
from overspill.trust.ear import ear
from overspill.trust.policy import TrustPolicy
from overspill.trust.verifier import Appraisal, Context
from overspill.types.evidence import Assurance

Host = Annotated[
    str | None, typer.Argument(help="HOST:PORT or unix:/path; default: the cloud of the settings.")
]
Ear = Annotated[
    bool, typer.Option("--ear", help="Print an EAT Attestation Result instead (unsigned).")
]
Authority = Annotated[Path | None, typer.Option("--ca", help="TLS authority to accept (PEM).")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this file."""
    group = typer.Typer(
        cls=Verbs,
        help="Verify the node that requests spill over to, and enrol this device with it.",
        no_args_is_help=True,
    )
    group.command("verify")(verify)
    group.command("enroll")(enroll)
    group.command("rotate")(rotate)
    app.add_typer(group, name="cloud")


def verify(
    host: Host = None,
    trust_policy: TrustPolicyFile = None,
    ca: Authority = None,
    as_ear: Ear = False,
    as_json: Json = False,
) -> int:
    """Verify a node's evidence, step by step; nothing is sent to it. Exit 0 or 6."""
    settings = settings_for(cloud=host, trust_policy=trust_policy)
    if settings.cloud is None:
        raise UsageError("No cloud is set.", mend="Give HOST:PORT, or set [cloud] address.")
    if ca is not None:
        cloud = settings.cloud
        settings = settings.with_cloud(cloud.address, trust_policy=cloud.trust_policy, ca=ca)
    policy = open_trust_policy(settings)
    appraisal = event_loop.run(_appraise(settings, policy))
    rejection, result = appraisal.rejection, appraisal.result
    if as_ear:
        print_json(_attestation_result(appraisal, policy))
    elif as_json:
        print_json(
            {
                "verdict": "rejected" if rejection else "accepted",
                "code": rejection.reason if rejection else None,
                "step": rejection.step if rejection else None,
                "expected": rejection.expected if rejection else None,
                "actual": rejection.actual if rejection else None,
                "steps": appraisal.steps,
                "claims": dict(result.claims) if result else {},
                "assurance": result.assurance.name if result else "NONE",
                "policy": policy.source,
            }
        )
    else:
        _print(appraisal, policy)
    return rejection.exit_code if rejection else 0


def enroll(
    code: Annotated[str, typer.Argument(help="The one-time code from the node's operator.")],
    cloud: CloudAddress = None,
    trust_policy: TrustPolicyFile = None,
    as_json: Json = False,
) -> None:
    """Enrol this device's key with the node, once its evidence verified."""
    settings = settings_for(cloud=cloud, trust_policy=trust_policy)

    async def run() -> int:
        async with open_cloud(settings) as engine:
            return await engine.enroll(code)

    until = event_loop.run(run())
    if as_json:
        print_json({"enrolled": True, "not_after_unix": until})
    else:
        when = datetime.datetime.fromtimestamp(until, datetime.UTC)
        print(f"Enrolled until {when:%Y-%m-%d %H:%M} UTC.")


def rotate(
    cloud: CloudAddress = None,
    trust_policy: TrustPolicyFile = None,
    as_json: Json = False,
) -> None:
    """Replace this device's key by a new one; the node keeps taking the old one for a day."""
    settings = settings_for(cloud=cloud, trust_policy=trust_policy)
    rotation = open_key_rotation(settings)
    rotation.old()
    new = rotation.new(time.time())

    async def run() -> int:
        async with open_cloud(settings) as engine:
            return await engine.rotate(new, not_after_unix=new.not_after_unix)

    until = event_loop.run(run())
    rotation.finish()
    if as_json:
        print_json({"rotated": True, "device": new.thumbprint, "not_after_unix": until})
    else:
        when = datetime.datetime.fromtimestamp(until, datetime.UTC)
        print(f"This device goes on as {new.thumbprint.hex()[:16]}, until {when:%Y-%m-%d} UTC.")


async def _appraise(settings: Settings, policy: TrustPolicy) -> Appraisal:
    transport = open_transport(settings)
    try:
        nonce = os.urandom(32) if policy.freshness == "nonce" else None
        bundle = await (transport.challenge(nonce) if nonce else transport.get_bundle())
        context = Context(
            now_unix=time.time(),
            address=transport.address,
            is_local=transport.is_local,
            nonce=nonce,
        )
        return appraise_remembering(bundle, context, policy, open_log_state(settings))
    finally:
        await transport.aclose()


def _attestation_result(appraisal: Appraisal, policy: TrustPolicy) -> dict[str, object]:
    rejection, result = appraisal.rejection, appraisal.result
    return ear(
        result.evidence_type if result else "node",
        verdict="rejected" if rejection else "accepted",
        assurance=result.assurance if result else Assurance.NONE,
        claims=result.claims if result else {},
        steps=appraisal.steps,
        rejection=rejection,
        policy=f"sha256:{policy.sha256.hex()}",
        now_unix=int(time.time()),
        version=__version__,
    )


def _print(appraisal: Appraisal, policy: TrustPolicy) -> None:
    print_steps(appraisal.steps)
    if appraisal.result:
        print(f"accepted under {policy.source}; assurance {appraisal.result.assurance.name}")
    else:
        print(f"rejected under {policy.source}")
