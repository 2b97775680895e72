"""The unsealed `Local` service: an engine or an embedder behind a Unix socket or loopback.

The worker speaks it; it never crosses a network. ``serve_local`` puts what answers behind an
address, ``LocalClient`` talks to one. All answers of a connection share one stream, and what a
step of the engine gives to all of them goes out as one message. Every call is owned and cancelled
when it is left: since grpcio 1.83 an abandoned aio call is never cancelled (grpc #43462).
"""

from overspill.transport.local.client import LocalClient
from overspill.transport.local.options import LocalOptions, LocalStatus
from overspill.transport.local.server import serve_local

__all__ = ["LocalClient", "LocalOptions", "LocalStatus", "serve_local"]
