"""Where a fleet's replicas are, as one of them tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicaList:
    """``addresses`` (``host:port``) as of ``issued_unix``, good for ``valid_s`` seconds."""

    addresses: tuple[str, ...]
    issued_unix: int
    valid_s: int
