"""Several nodes as plain processes: told of, restarted, replaced one by one, drained."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from overspill.errors import EngineDied, ModelNotFound, UsageError
from overspill.identity.keys import SoftwareKey
from overspill.remote import RemoteEngine
from overspill.transport.grpc import GrpcTransport
from overspill.trust.policy import parse_policy
from overspill.trust.template import dev_policy
from overspill.types.chat import Message, Request
from overspill_cloud.cli import app
from overspill_cloud.fleet.addresses import AddressFile
from overspill_cloud.fleet.figures import moves, parse_load, read_load
from overspill_cloud.fleet.supervisor import Fleet, FleetOptions
from overspill_cloud.store import Store

pytestmark = pytest.mark.anyio
FAR = 1 << 40


def options(folder: Path, *more: str) -> FleetOptions:
    arguments = ("--model", "echo=echo", "--state", str(folder / "state"), *more)
    return FleetOptions(2, arguments, folder / "addresses", stop_timeout_s=20.0)


async def until(holds: Any) -> None:
    for _ in range(600):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never came to hold")


async def test_a_fleet_is_told_of_restarted_and_upgraded_under_a_client(tmp_path: Path) -> None:
    fleet = Fleet(options(tmp_path, "--echo-delay-s", "0.01"))
    told = AddressFile(tmp_path / "addresses")
    await fleet.start()
    try:
        assert told.read() == tuple(node.address for node in fleet.nodes)
        assert len(set(told.read())) == 2
        dev_root = bytes.fromhex(fleet.nodes[0].facts["dev_root"])
        policy = parse_policy(dev_policy(dev_root, {"echo": sha256().digest()}))
        roads = [GrpcTransport(address) for address in told.read()]
        client = RemoteEngine(roads[0], policy, SoftwareKey.generate(FAR), open_road=GrpcTransport)
        store = Store(tmp_path / "state")
        await client.enroll(store.new_code(FAR))
        store.close()
        async with client:

            async def answer() -> str:
                request = Request((Message("user", "one two three four"),), max_tokens=64)
                return "".join([chunk.text async for chunk in client.generate(request)])

            assert await answer() == "echo: one two three four"
            # One is killed: another is started in its place, under another address.
            before, dead = set(told.read()), fleet.nodes[0]
            os.kill(dead.pid, signal.SIGKILL)
            running = asyncio.create_task(answer())
            await until(lambda: len(told.read()) == 2 and set(told.read()) != before)
            assert dead.address not in told.read()
            assert await running == "echo: one two three four"
            # All are replaced while answers run, and none is lost.
            before = set(told.read())
            running = asyncio.create_task(answer())
            await fleet.upgrade()
            assert await running == "echo: one two three four"
            assert len(told.read()) == 2
            assert not before & set(told.read())
        for road in roads:
            await road.aclose()
    finally:
        pids = [node.pid for node in fleet.nodes]
        await fleet.stop()
    assert fleet.nodes == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_node_that_hangs_is_replaced_and_prometheus_told(tmp_path: Path) -> None:
    chosen = replace(options(tmp_path), replicas=1, hung_after_s=3.0)
    heard: list[tuple[str, str]] = []
    fleet = Fleet(chosen, lambda what, where: heard.append((what, where)))
    told = AddressFile(chosen.addresses)
    await fleet.start()
    try:
        (hung,) = fleet.nodes
        assert targets(chosen) == [(hung.facts["metrics"], hung.address)]
        assert await moves(hung.facts["metrics"], 10.0)
        os.kill(hung.pid, signal.SIGSTOP)
        await until(lambda: told.read() and hung.address not in told.read())
        (fresh,) = fleet.nodes
        assert ("hangs", hung.address) in heard
        with pytest.raises(ProcessLookupError):
            os.kill(hung.pid, 0)
        assert targets(chosen) == [(fresh.facts["metrics"], fresh.address)]
        assert chosen.targets.stat().st_mode & 0o777 == 0o644
        assert isinstance(read_load(fresh.facts["metrics"]).fullest, float)
    finally:
        await fleet.stop()


def targets(chosen: FleetOptions) -> list[tuple[str, str]]:
    """What Prometheus reads: (target, the node that it is)."""
    groups = json.loads(chosen.targets.read_text())
    return [(target, one["labels"]["node"]) for one in groups for target in one["targets"]]


@pytest.mark.parametrize(
    ("said", "is_moving"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\nok\n", True),
        (b"HTTP/1.0 503 Service Unavailable\r\n\r\n", False),
        (b"", False),
        (None, False),
    ],
)
async def test_a_node_moves_when_it_says_so(said: bytes | None, is_moving: bool) -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        if said is not None:
            writer.write(said)
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await moves(f"127.0.0.1:{port}", 0.3 if said is None else 30.0) is is_moving
    server.close()
    assert asked == [b"GET /livez HTTP/1.0\r\n"]
    assert not await moves(f"127.0.0.1:{port}", 30.0)


@pytest.mark.parametrize(
    ("arguments", "drain_s"),
    [
        ((), 20.0),
        (("--model", "m", "--drain-s", "300"), 300.0),
        (("--drain-s=5", "--drain-s=300.5"), 300.5),
        (("--drain-s",), 20.0),
        (("--drain-s", "long"), 20.0),
    ],
)
def test_a_fleet_waits_longer_than_its_nodes_drain(
    arguments: tuple[str, ...], drain_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[FleetOptions] = []
    monkeypatch.setattr(
        "overspill_cloud.fleet.ray_serve.run_on_ray", lambda chosen, *_: ran.append(chosen)
    )
    words = ["fleet", "up", "--ray", "--addresses", str(tmp_path / "a"), "--", *arguments]
    CliRunner().invoke(app, words)
    assert ran[0].stop_timeout_s >= drain_s + 30


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", ""])
def test_a_host_that_devices_cannot_be_told_is_refused(host: str) -> None:
    words = ["fleet", "up", "--host", host, "--", "--model", "echo=echo"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, UsageError)
    assert "told" in result.exception.message


@pytest.mark.parametrize(
    ("listen", "own", "there"),
    [
        ("127.0.0.1:0", "10.0.0.7", "127.0.0.1:0"),
        ("localhost:0", "10.0.0.7", "localhost:0"),
        ("0.0.0.0:0", "10.0.0.7", "10.0.0.7:0"),
        ("10.0.0.1:0", "10.0.0.7", "10.0.0.7:0"),
        ("[::]:0", "fd00::7", "[fd00::7]:0"),
    ],
)
def test_a_node_that_ray_places_listens_on_its_own_machines_address(
    listen: str, own: str, there: str
) -> None:
    from overspill_cloud.fleet.ray_serve import listen_here

    assert listen_here(listen, lambda: own) == there


async def test_a_fleet_whose_nodes_cannot_start_says_so(tmp_path: Path) -> None:
    missing = FleetOptions(
        2, ("--model", f"m={tmp_path}/none.gguf", "--state", str(tmp_path)), tmp_path / "addresses"
    )
    with pytest.raises(EngineDied, match="code 3"):
        await Fleet(missing).start()


def test_a_fleet_that_cannot_start_ends_as_its_node_did(tmp_path: Path) -> None:
    arguments = ["fleet", "up", "--addresses", str(tmp_path / "a"), "--", "--state", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--model", "m=none.gguf"])
    assert isinstance(result.exception, ModelNotFound)
    assert result.exception.exit_code == 3


@pytest.mark.parametrize(
    "option", ["--listen", "--replicas=x", "--replicas-dns=x", "--metrics", "--json"]
)
def test_what_a_fleet_decides_itself_is_refused(option: str) -> None:
    result = CliRunner().invoke(app, ["fleet", "up", "--", option, "127.0.0.1:1"])
    assert isinstance(result.exception, UsageError)


def test_load_is_the_fullest_of_what_there_is() -> None:
    load = parse_load(
        "overspill_queue_usage_ratio 0.25\n"
        'overspill_kv_usage_ratio{model="a"} 0.5\noverspill_kv_usage_ratio{model="b"} 0.75\n'
    )
    assert (load.queue, load.kv, load.fullest) == (0.25, 0.75, 0.75)
    with pytest.raises(EngineDied):
        read_load("127.0.0.1:9")


@pytest.mark.parametrize(
    ("loads", "current", "wanted"),
    [([], 3, 3), ([0.6, 0.6], 2, 2), ([1.2, 1.2], 2, 4), ([0.0, 0.0], 4, 1), ([0.1], 1, 1)],
)
def test_the_size_follows_the_load(loads: list[float], current: int, wanted: int) -> None:
    from overspill_cloud.fleet.ray_serve import LOAD, size_for, wanted_replicas

    assert size_for(loads, current) == wanted
    by_replica = {str(n): [SimpleNamespace(value=load)] for n, load in enumerate(loads)}
    context = SimpleNamespace(
        raw_metrics={LOAD: by_replica, "running_requests": {"0": [SimpleNamespace(value=99.0)]}},
        current_num_replicas=current,
        capacity_adjusted_min_replicas=2,
        capacity_adjusted_max_replicas=3,
    )
    assert wanted_replicas(context)[0] == max(2, min(3, wanted))
