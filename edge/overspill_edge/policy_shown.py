"""The rules in force, as the daemon shows them."""

from __future__ import annotations

import time
from typing import Any

from overspill.routing.policy import RoutingPolicy
from overspill.types.chat import Privacy
from overspill_edge.endpoint import Service


def policy_in_force(service: Service) -> dict[str, Any]:
    """The daemon's rules, and what the administrator has above them, as JSON."""
    above = service.answerer.admin_policy
    floor = service.floor
    if above is not None and above.privacy is not None:
        floor = floor.tightened_by(above.privacy)
    body = policy_object(service.answerer.routing_policy, floor)
    return {**body, "administrator": above and above.as_dict()}


def policy_object(policy: RoutingPolicy, floor: Privacy) -> dict[str, Any]:
    """A policy as JSON; ``floor`` is the daemon's, which the policy's can only tighten. Listed
    terms are a person's own words: only how many there are is told."""
    return {
        "version": policy.version,
        "sha256": policy.sha256,
        "floor": floor.tightened_by(policy.floor).value,
        "threshold": policy.threshold,
        "switching_price": policy.switching_price,
        "strict": policy.strict,
        "detectors": {kind: raised.value for kind, raised in policy.detectors.items()},
        "redact": list(policy.redact),
        "listed_terms": len(policy.listed_terms),
        "certified": bool(policy.certificate),
        "expires_unix": policy.expires_unix or None,
        "expired": policy.is_expired(int(time.time())),
    }
