"""How full a node is, and whether it moves at all: read from its own ops port."""

from __future__ import annotations

import asyncio
import http.client
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from overspill.errors import EngineDied

TIMEOUT_S = 4.0


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """Shares of what there is: places for streams, and KV tokens of the fullest model."""

    queue: float
    kv: float

    @property
    def fullest(self) -> float:
        """What is the first to run out."""
        return max(self.queue, self.kv)


def read_load(metrics_at: str) -> NodeLoad:
    """Ask ``HOST:PORT``. Raises ``EngineDied`` where nothing, or no node, answers."""
    connection = http.client.HTTPConnection(metrics_at, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        text = response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise EngineDied(f"The node's ops port {metrics_at} does not answer.") from error
    finally:
        connection.close()
    if response.status != 200:
        raise EngineDied(f"The node behind {metrics_at} does not move.")
    return parse_load(text)


async def moves(metrics_at: str, timeout_s: float) -> bool:
    """Whether the node behind ``HOST:PORT`` answers that its loop turns. One that drains, or whose
    engine is down, does."""
    host, _, port = metrics_at.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            try:
                writer.write(b"GET /livez HTTP/1.0\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):  # the last: a line without an end
        return False


def parse_load(exposition: str) -> NodeLoad:
    """The load in Prometheus' text format."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            found[sample.name] = max(found.get(sample.name, 0.0), sample.value)
    return NodeLoad(
        found.get("overspill_queue_usage_ratio", 0.0), found.get("overspill_kv_usage_ratio", 0.0)
    )
