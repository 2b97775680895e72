"""grpc.health.v1, for balancers and probes: the node, and each model by its name.

SERVING means that new streams are taken and that the engine moved, not that a port answers. A
draining node says NOT_SERVING at once, to watchers too. Anybody may ask: an engine is asked no more
often for it, and only so many watch.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from overspill.errors import BusyError, OverspillError
from overspill.wire.v1 import status_pb2
from overspill_cloud.node import Node
from overspill_cloud.writing import Writer, writing

SERVICE: Final = "grpc.health.v1.Health"
WATCH_S: Final = 1.0
"""A watcher hears of a change within so long."""
MAX_WATCHERS: Final = 64
"""At once, of all clients: a watch is a call that does not end."""
_LOOK_S: Final = WATCH_S / 2
_ASK_S: Final = 2.0
_Status = status_pb2.HealthCheckResponse
SERVING: Final[int] = _Status.SERVING
_Context = grpc.aio.ServicerContext[Any, Any]


class Health:
    """The statuses of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._watchers = 0
        self._asked: dict[str, tuple[float, asyncio.Task[bool]]] = {}
        """Per model when its engine was asked last, and what it says."""

    async def status(self, service: str) -> int:
        """The status of a model, or of the node (""): serving while any of its models is."""
        models = self._node.models
        if service and service not in models:
            return _Status.SERVICE_UNKNOWN
        if self._node.is_draining:
            return _Status.NOT_SERVING
        names = [service] if service else list(models)
        for name in names:
            if await self._moves(name):
                return _Status.SERVING
        return _Status.NOT_SERVING

    async def _moves(self, name: str) -> bool:
        """Asked once for all who want to know at about the same time."""
        now = asyncio.get_running_loop().time()
        asked_s, asking = self._asked.get(name, (0.0, None))
        if asking is None or (asking.done() and now - asked_s >= _LOOK_S):
            asking = asyncio.create_task(self._ask(name))
            self._asked[name] = now, asking
        return await asyncio.shield(asking)

    async def _ask(self, name: str) -> bool:
        try:
            async with asyncio.timeout(_ASK_S):
                return (await self._node.models[name].engine.health()).ok
        except (OverspillError, TimeoutError):
            return False

    async def check(
        self, request: status_pb2.HealthCheckRequest, context: _Context
    ) -> status_pb2.HealthCheckResponse:
        """Answer once; NOT_FOUND for a model that is not served."""
        status = await self.status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return _answer(status)

    async def watch(self, request: status_pb2.HealthCheckRequest, context: _Context) -> None:
        """Answer now, and at each change, until the caller leaves.

        Raises ``BusyError`` when too many watch already.
        """
        if self._watchers >= MAX_WATCHERS:
            raise BusyError("Too many watch this node's health.", reason="WATCHERS")
        self._watchers += 1
        try:
            async with writing(context, self._node.limits.stall_timeout_s) as writer:
                await self._tell(request.service, writer)
        finally:
            self._watchers -= 1

    async def _tell(self, service: str, writer: Writer) -> NoReturn:
        known: int | None = None
        while True:
            status = await self.status(service)
            if status != known:
                await writer.write(_answer(status))
                known = status
            await asyncio.sleep(_LOOK_S)


def _answer(status: int) -> status_pb2.HealthCheckResponse:
    return status_pb2.HealthCheckResponse(status=_Status.ServingStatus.Name(status))


def health_handler(health: Health) -> grpc.GenericRpcHandler:
    """The service under its own name, which is not that of our messages."""
    coding: dict[str, Any] = {
        "request_deserializer": status_pb2.HealthCheckRequest.FromString,
        "response_serializer": status_pb2.HealthCheckResponse.SerializeToString,
    }
    methods: dict[str, Any] = {
        "Check": grpc.unary_unary_rpc_method_handler(health.check, **coding),
        "Watch": grpc.unary_stream_rpc_method_handler(health.watch, **coding),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)
