"""The unsealed `Local` service behind a Unix socket or loopback.

The worker speaks it for one engine or embedder (``serve_local``, ``LocalClient``), the daemon for
its apps, with routes and receipts (``DaemonClient``, after the handshake of
:mod:`overspill.transport.handshake`). It never crosses a network. All answers of a connection share
one stream, and what a step of the engine gives to all of them goes out as one message. Every call
is owned and cancelled when it is left: since grpcio 1.83 an abandoned aio call is never cancelled
(grpc #43462).
"""

from overspill.transport.local.client import LocalClient
from overspill.transport.local.daemon_client import DaemonClient
from overspill.transport.local.options import LocalOptions, LocalStatus
from overspill.transport.local.server import serve_local

__all__ = [
    "DaemonClient",
    "LocalClient",
    "LocalOptions",
    "LocalStatus",
    "serve_local",
]
