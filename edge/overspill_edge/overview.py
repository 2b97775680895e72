"""``GET /overspill/v1/overview``: all that the status page shows, in one document, without content.

Nobody is contacted for it: of the cloud it tells what was verified last, and when.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

import psutil
from starlette.responses import JSONResponse
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from overspill._version import __version__
from overspill.cloud_gate import KnownCloud
from overspill.engines.live_memory import available_memory
from overspill.engines.process_footprint import process_footprint
from overspill.types.card import ModelCard
from overspill_edge.access import Caller, caller_of
from overspill_edge.endpoint import Endpoint, Service
from overspill_edge.journal import Event, Plans
from overspill_edge.policy_shown import policy_in_force
from overspill_edge.residence import Residence
from overspill_edge.tokens import Scope
from overspill_edge.turns import Turns

SHOWN_EVENTS = 50
SPENDING_S = 30 * 24 * 3600


class Overview(Endpoint):
    """What runs, what ran and why, memory, money, proofs and rules; asks for the scope admin."""

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Tell it all."""
        caller = caller_of(scope)
        caller.require(Scope.ADMIN)
        await JSONResponse(overview(self._service, caller))(scope, receive, send)


def overview(service: Service, caller: Caller) -> dict[str, Any]:
    """The document."""
    journal, answerer, now = service.journal, service.answerer, int(time.time())
    spent = answerer.spending(now - SPENDING_S)
    events = journal.last[::-1]
    return {
        "version": __version__,
        "pid": os.getpid(),
        "uptime_s": now - service.started_unix,
        "model": _model(service.device.card, service.device.residence),
        "memory": _memory(),
        "running": [one.document() for one in journal.running],
        "queue": queue_seen_by(caller, service.device.turns),
        "last": [event.document() for event in events[:SHOWN_EVENTS]],
        "consents": [_consent(event, journal.plans) for event in events if _needed_consent(event)],
        "totals": asdict(journal.totals),
        "spending": [asdict(one) for one in spent],
        "cost_30_days": sum(one.cost for one in spent),
        "cloud": _cloud(answerer.known_cloud()),
        "policy": policy_in_force(service),
    }


def queue_seen_by(caller: Caller, turns: Turns) -> list[dict[str, Any]]:
    """Who waits for the device, in the order of their turns: an app sees its own requests, who may
    administer sees all."""
    sees_all = Scope.ADMIN in caller.scopes
    return [asdict(one) for one in turns.queued() if sees_all or one.app == caller.app]


def _needed_consent(event: Event) -> bool:
    return event.error == "consent_required"


def _consent(event: Event, plans: Plans) -> dict[str, Any]:
    """The refused request, and what would have left for it, where that is still known."""
    plan = plans.of(event.request_id, None)
    return {**event.document(), "would_leave": None if plan is None else plan.would_leave}


def _model(card: ModelCard | None, residence: Residence | None) -> dict[str, Any] | None:
    """``full_bytes`` is with the KV cache grown to its full size, as estimated before loading."""
    if card is None:
        return None
    return {
        "name": card.name,
        "runtime": card.runtime,
        "context": card.context,
        "weights_bytes": card.size_bytes or None,
        "full_bytes": card.memory_bytes or None,
        "notes": list(card.notes),
        **({} if residence is None else residence.document()),
    }


def _memory() -> dict[str, int | None]:
    """What the daemon and its workers hold now, and what is free, in bytes."""
    held = process_footprint()
    for child in psutil.Process().children(recursive=True):
        try:
            held += process_footprint(child.pid)
        except ProcessLookupError:
            continue  # it ended since it was listed
    return {"daemon_bytes": held, "free_bytes": available_memory()}


def _cloud(known: KnownCloud | None) -> dict[str, Any] | None:
    if known is None:
        return None
    result = known.result
    proof = None if result is None else {
        "assurance": result.assurance.name,
        "evidence_type": result.evidence_type,
        "dev": result.dev,
        "checked_unix": known.checked_unix,
        "accepted_until": result.accepted_until,
        "release_id": result.release_id.hex(),
        "nkc_sha256": result.nkc_sha256.hex(),
        "steps": [asdict(step) for step in result.steps],
    }  # fmt: skip
    problem = None if known.problem is None else known.problem.message
    return {"address": known.address, "proof": proof, "problem": problem}
