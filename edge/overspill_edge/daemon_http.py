"""Asks the daemon of this user over its Unix socket, for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from overspill.config import Settings
from overspill.errors import BusyError, ConnectFailed, DaemonRefused, ModelNotFound, OverspillError
from overspill_edge.listen import SOCKET_NAME

LOADING_TIMEOUT_S = 600.0
_KINDS: Mapping[str, type[OverspillError]] = {
    "model_not_found": ModelNotFound,
    "model_busy": BusyError,
    "busy": BusyError,
}


def socket_of(settings: Settings) -> Path:
    """Where this user's daemon listens by default."""
    return settings.places.runtime / SOCKET_NAME


def ask(
    settings: Settings, method: str, path: str, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The daemon's JSON document. Raises ``ConnectFailed`` where none runs, and the daemon's own
    word as a typed error else."""
    where = socket_of(settings)
    transport = httpx2.HTTPTransport(uds=str(where))
    try:
        with httpx2.Client(
            transport=transport, base_url="http://localhost", timeout=LOADING_TIMEOUT_S
        ) as http:
            answer = http.request(method, path, json=body)
    except httpx2.HTTPError as error:
        raise ConnectFailed(
            f"No daemon answers at {where} ({type(error).__name__}).", mend="Run: overspill serve"
        ) from error
    document = answer.json() if answer.content else {}
    if answer.status_code == 200 and isinstance(document, dict):
        return document
    raise _refusal(answer.status_code, document)


def _refusal(status: int, document: Any) -> OverspillError:
    error = document.get("error", {}) if isinstance(document, dict) else {}
    kind = _KINDS.get(str(error.get("code")), DaemonRefused)
    return kind(str(error.get("message", f"The daemon answered with status {status}.")))
