"""Nodes as plain processes of one machine: started, restarted, upgraded one by one, drained.

Each is an ``overspill-cloud serve`` of its own, with its own port, and an ops port on loopback. The
file of addresses is written whenever a node has come or gone, and every node tells it to devices,
signed (``Locate``); a file beside it names the ops ports for Prometheus. A node that ends, or whose
ops port says nothing for long, is started anew.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from overspill.config import child_environment
from overspill.errors import EngineDied, OverspillError, error_of
from overspill.spawn import spawn_options
from overspill_cloud.fleet.addresses import write_addresses, write_targets
from overspill_cloud.fleet.figures import moves

FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
METRICS: Final = "127.0.0.1:0"
SILENCES: Final = 6
"""So many questions in a row that a node did not answer, and it counts as hung."""


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """``arguments`` are those of ``overspill-cloud serve``, but for where it listens;
    ``listen`` has port 0: each node takes a free one. ``stop_timeout_s`` bounds a drain;
    a node that answers nothing for ``hung_after_s`` is ended."""

    replicas: int
    arguments: tuple[str, ...]
    addresses: Path
    listen: str = "127.0.0.1:0"
    start_timeout_s: float = 600.0
    stop_timeout_s: float = 60.0
    hung_after_s: float = 30.0

    @property
    def targets(self) -> Path:
        """The file that names the nodes' ops ports for Prometheus."""
        return self.addresses.with_name(f"{self.addresses.name}.metrics.json")


class NodeNotUp(EngineDied):
    """A node did not come up; ``why`` is what it said itself, if it said something."""

    def __init__(self, message: str, *, mend: str, why: OverspillError | None) -> None:
        super().__init__(message, mend=mend)
        self.why = why


class NodeProcess:
    """One node. ``facts`` is the line that it printed when it was ready."""

    def __init__(self, process: asyncio.subprocess.Process, facts: dict[str, Any]) -> None:
        self._process = process
        self.facts = facts

    @property
    def address(self) -> str:
        """Where it listens."""
        return str(self.facts["listen"])

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @classmethod
    async def start(cls, options: FleetOptions) -> NodeProcess:
        """Start a node and wait until it serves. Raises ``EngineDied`` where it does not."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "overspill_cloud", "serve", *options.arguments),
            *("--listen", options.listen, "--replicas", str(options.addresses), "--json"),
            *("--metrics", METRICS),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=child_environment(),
            **spawn_options(),
        )
        facts: dict[str, Any] = {}
        try:
            async with asyncio.timeout(options.start_timeout_s):
                line = await process.stdout.readline() if process.stdout else b""
                facts = json.loads(line or b"{}")
                if "listen" in facts:
                    return cls(process, facts)
                await process.wait()
        except (TimeoutError, ValueError):
            facts = {}
        except BaseException:
            await _kill(process)
            raise
        raise _not_up(facts, await _kill(process))

    async def wait(self) -> int:
        """Wait until it has ended; its exit code."""
        return await self._process.wait()

    async def moves(self, timeout_s: float) -> bool:
        """Whether it says within so long that its loop turns."""
        return await moves(str(self.facts["metrics"]), timeout_s)

    async def kill(self) -> None:
        """End it at once."""
        await _kill(self._process)

    async def stop(self, timeout_s: float) -> None:
        """Let it drain and end; kill it after ``timeout_s``."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                await self._process.wait()
        except TimeoutError:
            await _kill(self._process)


async def _kill(process: asyncio.subprocess.Process) -> int:
    with suppress(ProcessLookupError):
        process.kill()
    return await process.wait()


def _not_up(facts: dict[str, Any], code: int) -> NodeNotUp:
    """With the node's own words, where it had any."""
    error = facts.get("error") or {}
    message = error.get("message", "")
    mend = error.get("mend") or "See its log above."
    return NodeNotUp(
        f"A node of the fleet did not come up (code {code}). {message}".rstrip(),
        mend=mend,
        why=error_of(error["code"], {"message": message, "mend": mend}) if error else None,
    )


@dataclass
class _Place:
    """One replica's place: the node that has it now, and those that drain."""

    node: NodeProcess | None = None
    retiring: set[NodeProcess] = field(default_factory=set)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Fleet:
    """Keeps ``replicas`` nodes running. ``told`` hears what happens, for the operator's log."""

    def __init__(
        self, options: FleetOptions, told: Callable[[str, str], None] = lambda what, where: None
    ) -> None:
        self._options = options
        self._told = told
        self._places = [_Place() for _ in range(options.replicas)]
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def nodes(self) -> Sequence[NodeProcess]:
        """Those that serve now."""
        return [place.node for place in self._places if place.node is not None]

    async def start(self) -> None:
        """Start every node, one after the other. Raises ``EngineDied`` when one fails."""
        self._options.addresses.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        try:
            for place in self._places:
                self._put(place, await NodeProcess.start(self._options))
        except BaseException:
            await self.stop()
            raise
        self._keepers = [
            asyncio.create_task(kept)
            for place in self._places
            for kept in (self._keep(place), self._watch(place))
        ]

    async def upgrade(self) -> None:
        """Replace every node, one by one: the new one serves before the old one drains.

        Raises ``EngineDied`` when a new one does not come up; the old ones go on then.
        """
        for place in self._places:
            async with place.changing:
                fresh, old = await NodeProcess.start(self._options), place.node
                if old is not None:
                    place.retiring.add(old)
                self._put(place, fresh)
            if old is not None:
                await old.stop(self._options.stop_timeout_s)
                place.retiring.discard(old)

    async def stop(self) -> None:
        """Drain and end all nodes, together."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        running = [*self.nodes, *(node for place in self._places for node in place.retiring)]
        await asyncio.gather(*(node.stop(self._options.stop_timeout_s) for node in running))
        for place in self._places:
            place.node = None

    def _put(self, place: _Place, node: NodeProcess | None) -> None:
        if node is not None:
            self._told("serves", node.address)
        place.node = node
        self._write()

    def _write(self) -> None:
        write_addresses(self._options.addresses, [one.address for one in self.nodes])
        write_targets(self._options.targets, [one.facts for one in self.nodes])

    async def _keep(self, place: _Place) -> None:
        """Start a node anew whenever the one in this place has ended by itself."""
        pause_s = FIRST_PAUSE_S
        while True:
            node = place.node
            if node is not None:
                await node.wait()
            try:
                async with place.changing:
                    if place.node is node:  # and not another one, by an upgrade
                        await self._again(place)
                pause_s = FIRST_PAUSE_S
            except EngineDied as error:
                self._told("failed", error.message)
                await asyncio.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    async def _watch(self, place: _Place) -> None:
        """End the node in this place once it is silent for so long; its keeper starts another."""
        half_s = self._options.hung_after_s / SILENCES / 2
        watched, silences = place.node, 0
        while True:
            await asyncio.sleep(half_s)
            node = place.node
            if node is None or node is not watched or await node.moves(half_s):
                watched, silences = node, 0
                continue
            silences += 1
            if silences == SILENCES and place.node is node:
                self._told("hangs", node.address)
                await node.kill()

    async def _again(self, place: _Place) -> None:
        if place.node is not None:
            self._told("ended", place.node.address)
            self._put(place, None)
        self._put(place, await NodeProcess.start(self._options))
