"""`overspill trust status`: what will expire, said before it breaks anything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from overspill.cli.common import Json, print_json, settings_for
from overspill.opening import open_trust_policy
from overspill.trust.certificates import Certificate, parse_certificate
from overspill.trust.chain import moment
from overspill.trust.policy import TrustPolicy, load_policy
from overspill.trust.roots import vendor_roots

_DAY_S = 86_400
_WARN_DAYS = 60


@dataclass(frozen=True, slots=True)
class Anchor:
    """A certificate that evidence may end in, and how long it still holds."""

    name: str
    used_by: str
    not_after: str
    days_left: int
    ok: bool


def register(group: typer.Typer) -> None:
    """Add the verb of this file to the group `trust`."""
    group.command("status")(status)


def status(
    file: Annotated[
        Path | None, typer.Argument(help="A policy file; the settings' own if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what the policy demands, and which of its anchors expire soon."""
    policy = load_policy(file) if file else open_trust_policy(settings_for())
    anchors = list(_anchors(policy, int(time.time())))
    if as_json:
        print_json(
            {
                "policy": policy.source,
                "policy_sha256": policy.sha256,
                "min_assurance": policy.min_assurance,
                "accept": sorted(policy.accept),
                "freshness": policy.freshness,
                "closed": sorted(policy.closed),
                "anchors": anchors,
                "warnings": [_warning(one) for one in anchors if not one.ok],
            }
        )
        return
    print(f"policy: {policy.source} (sha256 {policy.sha256.hex()})")
    print(f"least assurance: {policy.min_assurance.name}; freshness: {policy.freshness}")
    print(f"accepted evidence: {', '.join(sorted(policy.accept))}")
    print(f"the node has to have closed: {', '.join(sorted(policy.closed)) or 'nothing'}")
    for one in anchors:
        print(f"  {one.used_by:<12} {one.name:<40} until {one.not_after}")
    for one in anchors:
        if not one.ok:
            print(f"warning: {_warning(one)}")


def _anchors(policy: TrustPolicy, now_unix: int) -> Iterator[Anchor]:
    """The roots that the policy's types end in: shipped ones, and its own."""
    shipped = vendor_roots()
    groups: list[tuple[str, tuple[Certificate, ...]]] = []
    if policy.accept & {"sev-snp", "sev-snp-vtpm"}:
        names = {f"ARK-{name}" for name in policy.snp.products} if policy.snp else set()
        groups.append(("sev-snp", tuple(r for r in shipped.amd if not names or r.name in names)))
    if "tdx" in policy.accept:
        groups.append(("tdx", shipped.intel))
    if "nvidia-gpu" in policy.accept:
        groups.append(("nvidia-gpu", shipped.nvidia))
    if policy.tpm:
        own = (*policy.tpm.ek_roots, *policy.tpm.ak_roots)
        groups.append(("tpm", tuple(parse_certificate(der) for der in own)))
    for used_by, roots in groups:
        for root in roots:
            days = (root.not_after - now_unix) // _DAY_S
            yield Anchor(root.name, used_by, moment(root.not_after), days, days >= _WARN_DAYS)


def _warning(anchor: Anchor) -> str:
    if anchor.days_left < 0:
        return f"'{anchor.name}' expired {anchor.not_after}: {anchor.used_by} evidence is refused."
    return (
        f"'{anchor.name}' expires in {anchor.days_left} days: "
        f"{anchor.used_by} evidence will be refused then."
    )
