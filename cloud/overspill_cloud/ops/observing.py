"""Puts together what watches a node: chosen by its operator, off unless asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from overspill.engines.base import Engine
from overspill.errors import OverspillError
from overspill_cloud import events
from overspill_cloud.health import SERVING, Health
from overspill_cloud.models import ServedModel
from overspill_cloud.node import Node
from overspill_cloud.ops.endpoint import OpsEndpoint, parse_ops_address, serving_ops
from overspill_cloud.ops.metered import MeteredEngine, Watcher
from overspill_cloud.ops.metrics import ModelFigures, NodeFigures, NodeMetrics
from overspill_cloud.ops.traces import NodeTraces, otlp_exporter
from overspill_cloud.room import Room

ASK_S = 1.0
"""An engine that has not said by then how it is counts as down: well before whoever reads figures
gives up, for just then they are wanted."""


class Observing:
    """What watches one node. ``metrics_at`` is where the ops port listens, None without one."""

    def __init__(self, metrics: NodeMetrics | None, traces: NodeTraces | None) -> None:
        self._metrics = metrics
        self._traces = traces
        self._watchers: tuple[Watcher, ...] = tuple(
            watcher for watcher in (metrics, traces) if watcher is not None
        )

    def metered(self, model: str, engine: Engine) -> Engine:
        """The engine, watched; itself where nobody watches."""
        return MeteredEngine(engine, model, self._watchers) if self._watchers else engine

    def logged(self, event: events.LogEvent) -> None:
        """Told of every event of the log."""
        if self._metrics is not None:
            self._metrics.logged(event)

    @asynccontextmanager
    async def showing(
        self, address: tuple[str, int] | None, node: Node, room: Room
    ) -> AsyncGenerator[str | None]:
        """The ops port within the block, where one is wanted; gives where it is."""
        metrics = self._metrics
        if address is None or metrics is None:
            yield None
            return

        async def figures() -> bytes:
            return metrics.exposition(await node_figures(node, room))

        async def is_ready() -> bool:
            return await Health(node).status("") == SERVING

        async with serving_ops(address, OpsEndpoint(figures, is_ready)) as shown_at:
            yield shown_at


@asynccontextmanager
async def observing(metrics: bool, traces: str | None) -> AsyncGenerator[Observing]:
    """What an operator asked for. Raises ``MissingExtra`` where it is not installed."""
    async with AsyncExitStack() as stack:
        spans = None
        if traces is not None:
            spans = NodeTraces(otlp_exporter(traces))
            stack.callback(spans.close)
        yield Observing(NodeMetrics() if metrics else None, spans)


def ops_address(text: str | None, open_ports: tuple[int, ...]) -> tuple[str, int] | None:
    """Where the ops port is wanted. Raises ``UsageError`` or ``ConfigurationError``."""
    return None if text is None else parse_ops_address(text, open_ports)


async def node_figures(node: Node, room: Room) -> NodeFigures:
    """The node's figures now."""
    found = await asyncio.gather(*(_model_figures(model, room) for model in node.models.values()))
    models = dict(zip(node.models, found, strict=True))
    lanes = {lane: room.in_lane(lane) for lane in ("interactive", "batch")}
    return NodeFigures(models, lanes, room.max_streams, node.is_draining)


async def _model_figures(model: ServedModel, room: Room) -> ModelFigures:
    try:
        async with asyncio.timeout(ASK_S):
            health = await model.engine.health()
    except (OverspillError, TimeoutError):
        return ModelFigures(False, 0, 0, room.kv_taken(model.name), model.kv_tokens)
    return ModelFigures(
        health.ok, health.active, health.queued, room.kv_taken(model.name), model.kv_tokens
    )
