"""What both ends of the `Local` service agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from overspill.engines.base import EngineHealth
from overspill.types.card import ModelCard

TOKEN_KEY = "authorization"  # noqa: S105 - the name of a header, not a secret


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """``silence_s``: a connection without any message for so long, heartbeats included, while an
    answer is due, is broken."""

    heartbeat_s: float = 2.0
    silence_s: float = 10.0
    call_timeout_s: float = 30.0
    max_message_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class LocalStatus:
    """What the other side says of itself."""

    health: EngineHealth
    card: ModelCard
    version: str


def bearer(token: str) -> str:
    """The header's value that proves who calls."""
    return f"Bearer {token}"


def channel_settings(options: LocalOptions) -> list[tuple[str, Any]]:
    """For both ends."""
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.enable_http_proxy", 0),
        # A restarted peer is another peer: no connection, and no backoff, outlives a client.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.so_reuseport", 0),
    ]
