"""The unsealed messages between processes of one user, on one machine.

A worker speaks them on a socket of its own (``serve_worker``, ``WorkerClient``), without gRPC. The
daemon speaks gRPC to its apps, the `Local` service, with routes and receipts (``DaemonClient``,
after the handshake of :mod:`overspill.transport.handshake`). Neither crosses a network. All answers
of a connection share one stream, and what a step of the engine gives to all of them goes out as one
message. Every gRPC call is owned and cancelled when it is left: since grpcio 1.83 an abandoned aio
call is never cancelled (grpc #43462).
"""
