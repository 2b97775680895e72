"""Ray Serve as what places, restarts, upgrades and scales nodes; nothing a device says passes it.

One Serve replica holds one node, an ``overspill-cloud serve`` of its own with its own TLS port,
which it starts anew at once when it ends. Serve's health check looks whether the node moves; its
autoscaler goes by the node's own figures (places and KV cache). A small actor collects the
addresses, and every replica writes them where its node reads them. Serve's HTTP ingress is not
opened.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from overspill.config import refuse_usage_reports
from overspill.errors import EngineDied, MissingExtra
from overspill.transport.base import is_local_address
from overspill_cloud.fleet.addresses import write_addresses
from overspill_cloud.fleet.figures import NodeLoad, read_load
from overspill_cloud.fleet.supervisor import FleetOptions, NodeProcess

APP: Final = "overspill"
REGISTRY: Final = "overspill-addresses"
LOAD: Final = "overspill_load"
BEAT_S: Final = 0.5
TELL_S: Final = 0.2
LOST_AFTER_S: Final = 5.0
MAX_DEATHS: Final = 5
"""So many of a replica's nodes may end within ``DEATHS_WINDOW_S``; then Serve places another."""
DEATHS_WINDOW_S: Final = 60.0
TARGET: Final = 0.6
"""Of places, and of KV tokens, so much is taken when the fleet has the right size."""


class Registry:
    """Which nodes there are: each says so every half second, and is forgotten when it stops."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, dict[str, Any]]] = {}

    def beat(self, facts: dict[str, Any]) -> list[str]:
        """A node lives; gives the addresses of all."""
        self._seen[facts["listen"]] = (time.monotonic(), facts)
        return [str(one["listen"]) for one in self.nodes()]

    def leave(self, address: str) -> None:
        """A node drains."""
        self._seen.pop(address, None)

    def nodes(self) -> list[dict[str, Any]]:
        """What each living node printed when it was ready."""
        oldest = time.monotonic() - LOST_AFTER_S
        self._seen = {a: seen for a, seen in self._seen.items() if seen[0] >= oldest}
        return [facts for _, facts in self._seen.values()]


def machine_address() -> str:
    """The address by which Ray's other machines know this one."""
    import ray

    return str(ray.util.get_node_ip_address())


def listen_here(listen: str, where: Callable[[], str]) -> str:
    """Where a node listens on the machine on which it was placed, which is also what devices are
    told: beyond loopback that machine's own address, whichever it is."""
    if is_local_address(listen):
        return listen
    own, port = where(), listen.rpartition(":")[2]
    return f"[{own}]:{port}" if ":" in own else f"{own}:{port}"


class NodeReplica:
    """One node in a Serve replica. Its loop runs in a thread of its own. ``version`` counts the
    upgrades, and does nothing but differ; ``where`` gives this machine's address."""

    def __init__(
        self,
        options: FleetOptions,
        version: int = 1,
        where: Callable[[], str] = machine_address,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="overspill-fleet-")
        addresses = Path(self._folder.name) / "addresses"
        write_addresses(addresses, ())
        listen = listen_here(options.listen, where)
        self._options = replace(options, addresses=addresses, listen=listen)
        self._loop = asyncio.new_event_loop()
        self._stopping = threading.Event()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._node: NodeProcess = self._run(NodeProcess.start(self._options))
        self._changing = asyncio.Lock()
        self._changed = threading.Event()
        """The node came or went: that is told at once."""
        self._keeping = asyncio.run_coroutine_threadsafe(self._keep(), self._loop)
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()

    def facts(self) -> dict[str, Any]:
        """What the node printed when it was ready."""
        return self._node.facts

    def check_health(self) -> None:
        """Raise ``EngineDied`` when the node ends again and again or its loop does not turn: Serve
        starts another replica then."""
        if self._keeping.done():
            raise EngineDied(f"The node on {self._node.address} has ended.")
        if self._changing.locked():
            return  # it is being started, for which there is a limit of its own
        read_load(str(self._node.facts["metrics"]))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """How full the node is, for :func:`wanted_replicas`."""
        load: NodeLoad = read_load(str(self._node.facts["metrics"]))
        return {LOAD: load.fullest}

    def __del__(self) -> None:
        """Drain: Serve calls this when the replica is replaced or the fleet shrinks."""
        self._stopping.set()
        self._changed.set()
        self._run(self._stop())
        self._folder.cleanup()

    async def _stop(self) -> None:
        async with self._changing:
            await self._node.stop(self._options.stop_timeout_s)

    async def _keep(self) -> None:
        """Start the node anew whenever it ends by itself. Raises ``EngineDied`` where that does not
        help."""
        deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        while True:
            await self._node.wait()
            async with self._changing:
                if self._stopping.is_set():
                    return
                self._changed.set()
                deaths.append(time.monotonic())
                if len(deaths) == MAX_DEATHS and deaths[-1] - deaths[0] < DEATHS_WINDOW_S:
                    raise EngineDied(f"The node on {self._node.address} ended {MAX_DEATHS} times.")
                self._node = await NodeProcess.start(self._options)
            self._changed.set()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _beat(self) -> None:
        import ray

        registry = ray.get_actor(REGISTRY, namespace=APP)
        known = ""
        while not self._stopping.is_set() and not self._keeping.done():
            is_changing = self._changing.locked()
            if known and (is_changing or known != self._node.address):
                ray.get(registry.leave.remote(known))
                known = ""
            if not is_changing:
                known = self._node.address
                told = ray.get(registry.beat.remote(self._node.facts))
                write_addresses(self._options.addresses, told)
            self._changed.wait(BEAT_S)
            self._changed.clear()
        if known:
            ray.get(registry.leave.remote(known))


def wanted_replicas(context: Any) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy: so many that each is about ``TARGET`` full."""
    by_replica = (context.raw_metrics or {}).get(LOAD, {})
    loads = [values[-1].value for values in by_replica.values() if values]
    wanted = size_for(loads, context.current_num_replicas)
    low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return max(low, min(high, wanted)), {}


def size_for(loads: list[float], current: int) -> int:
    """How many replicas bring the mean load to ``TARGET``; as many as now where it is unknown."""
    if not loads:
        return current
    return max(1, round(current * (sum(loads) / len(loads)) / TARGET + 0.499))


def run_on_ray(
    options: FleetOptions, max_replicas: int, ready: Callable[[dict[str, Any]], None]
) -> None:
    """Run the fleet until SIGTERM or SIGINT. Raises ``MissingExtra`` without Ray."""
    try:
        import ray
        from ray import serve
    except ImportError:
        raise MissingExtra("A fleet on Ray", "fleet") from None
    stopped, again = threading.Event(), threading.Event()
    again.set()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: again.set())
    refuse_usage_reports()
    ray.init(namespace=APP, ignore_reinit_error=True, include_dashboard=False)
    serve.start(http_options={"location": "NoServer"})
    named = {"name": REGISTRY, "lifetime": "detached", "get_if_exists": True}
    registry = ray.remote(num_cpus=0)(Registry).options(**named).remote()
    # Beside the deployments: one lasts until the last node is replaced, and who reads the file
    # meanwhile would find nodes that have gone.
    pool = ThreadPoolExecutor(1, thread_name_prefix="overspill-addresses")
    telling = pool.submit(_tell, ray, registry, options.addresses, stopped)
    try:
        version = 0
        while not stopped.is_set():
            if telling.done():
                telling.result()  # raises what ended it
            if again.is_set():
                again.clear()
                version += 1
                _deploy(serve, options, max_replicas, version)
                _until_there(ray, registry, options.replicas, stopped)
                ready({"nodes": ray.get(registry.nodes.remote()), "pid": os.getpid()})
            stopped.wait(BEAT_S)
    finally:
        stopped.set()
        pool.shutdown()
        serve.delete(APP)
        ray.kill(registry)
        serve.shutdown()
        ray.shutdown()


def _tell(ray: Any, registry: Any, addresses: Path, stopped: threading.Event) -> None:
    """Keep the file of addresses true."""
    addresses.parent.mkdir(parents=True, exist_ok=True)
    while not stopped.wait(TELL_S):
        write_addresses(addresses, [one["listen"] for one in ray.get(registry.nodes.remote())])


def _deploy(serve: Any, options: FleetOptions, max_replicas: int, version: int) -> None:
    """Deploy, or, with another ``version``, replace replica by replica: Serve starts those anew
    whose arguments changed."""
    sizes: dict[str, Any] = {"num_replicas": options.replicas}
    if max_replicas > options.replicas:
        policy = {"policy_function": f"{__name__}:wanted_replicas"}
        sizes = {
            "autoscaling_config": {
                "min_replicas": options.replicas,
                "max_replicas": max_replicas,
                "policy": policy,
            }
        }
    deployment = serve.deployment(
        NodeReplica,
        name="node",
        health_check_period_s=0.5,
        health_check_timeout_s=5,
        graceful_shutdown_timeout_s=options.stop_timeout_s,
        ray_actor_options={"num_cpus": 0.1},
        **sizes,
    )
    serve.run(deployment.bind(options, version), name=APP, route_prefix=None, blocking=False)


def _until_there(ray: Any, registry: Any, replicas: int, stopped: threading.Event) -> None:
    while not stopped.wait(0.1):
        if len(ray.get(registry.nodes.remote())) >= replicas:
            return
