"""Where the replicas are: told by one that proved itself, signed, and never believed for more."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from overspill.config import load_settings
from overspill.engines.options import EngineOptions
from overspill.errors import InvalidRequest, ReceiptInvalid, TransportError, UsageError
from overspill.exchange import Migrated
from overspill.identity.keys import SoftwareKey
from overspill.locating import Locator, locate
from overspill.opening import open_cloud
from overspill.remote import RemoteEngine
from overspill.replica import by_rendezvous
from overspill.sealing.receipt import ReceiptKey
from overspill.transport.grpc import GrpcTransport
from overspill.trust.policy import parse_policy
from overspill.trust.template import dev_policy
from overspill.types.chat import Message, Request
from overspill.types.replicas import ReplicaList
from overspill.wire import convert, plaintext
from overspill_cloud.app import ModelSpec, NodeOptions, Serving, serve
from overspill_cloud.fleet.addresses import AddressFile, write_addresses
from overspill_cloud.fleet.dns import DnsReplicas, resolve
from overspill_cloud.store import Store

pytestmark = pytest.mark.anyio
FAR, NOW = 1 << 40, 1_700_000_000
NKC = bytes(range(32))


class Told:
    """A replica that verified, and says what a test has it say."""

    def __init__(self, address: str, told: ReplicaList | Exception, *, local: bool = False) -> None:
        self.address = address
        self.key = ReceiptKey.generate()
        self.signer = self.key
        self.told = told
        self.asked = 0
        self.streams = 0
        self.is_closed = False
        self.transport = SimpleNamespace(locate=self._locate, is_local=local, aclose=self._close)

    async def _close(self) -> None:
        self.is_closed = True

    async def verified(self) -> Any:
        result = SimpleNamespace(receipt_public_key=self.key.public_bytes, nkc_sha256=NKC)
        return SimpleNamespace(result=result)

    async def _locate(self) -> tuple[bytes, bytes]:
        self.asked += 1
        if isinstance(self.told, Exception):
            raise self.told
        data = convert.replicas_to_bytes(self.told)
        return data, self.signer.sign_replicas(NKC, data)


def listing(*addresses: str, issued: int = NOW, valid_s: int = 30) -> ReplicaList:
    return ReplicaList(addresses, issued, valid_s)


def test_a_list_is_the_same_after_the_wire() -> None:
    made = listing("a:1", "b:2")
    assert plaintext.replicas_from_bytes(convert.replicas_to_bytes(made)) == made


async def test_a_signed_list_is_taken() -> None:
    assert (await locate(Told("a:1", listing("a:1", "b:2")), NOW)).addresses == ("a:1", "b:2")


@pytest.mark.parametrize(
    "told",
    [
        listing("a:1", issued=NOW - 121),
        listing("a:1", issued=NOW + 121),
        listing("a:1", valid_s=3601),
        listing(*(f"a:{n}" for n in range(257))),
    ],
)
async def test_an_old_or_endless_list_is_refused(told: ReplicaList) -> None:
    with pytest.raises(ReceiptInvalid):
        await locate(Told("a:1", told), NOW)


async def test_a_list_that_another_signed_is_refused() -> None:
    replica = Told("a:1", listing("evil:1"))
    replica.signer = ReceiptKey.generate()
    with pytest.raises(ReceiptInvalid, match="signature"):
        await locate(replica, NOW)


def locator(*seeds: Told, now: list[float]) -> tuple[Locator, list[str]]:
    opened: list[str] = []

    def join(address: str) -> Any:
        opened.append(address)
        return Told(address, listing())

    return Locator(seeds, join, lambda: now[0]), opened


async def test_replicas_that_come_are_opened_once_and_those_that_go_are_not_used() -> None:
    now = [float(NOW)]
    seed = Told("a:1", listing("a:1", "b:2"))
    follow, opened = locator(seed, now=now)
    found = await follow.refresh([seed])
    assert [one.address for one in found] == ["a:1", "b:2"]
    assert await follow.refresh(found) is found
    assert seed.asked == 1
    now[0] += 31
    seed.told = listing("a:1", "c:3", issued=int(now[0]))
    found = await follow.refresh(found)
    assert [one.address for one in found] == ["a:1", "c:3"]
    assert opened == ["b:2", "c:3"]
    assert {one.address for one in follow.all} == {"a:1", "b:2", "c:3"}


async def test_roads_to_replicas_that_are_gone_are_closed_and_answers_under_way_are_not() -> None:
    now = [float(NOW)]
    seed = Told("a:1", listing("a:1", "b:2", "c:3"))
    follow, opened = locator(seed, now=now)
    *_, second, third = found = await follow.refresh([seed])

    async def told_anew(*addresses: str) -> None:
        nonlocal found
        now[0] += 31
        seed.told = listing(*addresses, issued=int(now[0]))
        found = await follow.refresh(found)

    third.streams = 1
    await told_anew("a:1", "d:4")
    assert not second.is_closed  # somebody may just have chosen it
    await told_anew("a:1", "d:4")
    assert second.is_closed
    assert not third.is_closed
    assert {one.address for one in follow.all} == {"a:1", "c:3", "d:4"}
    third.streams = 0
    await told_anew("a:1", "b:2", "d:4")
    assert third.is_closed
    assert not seed.is_closed
    assert opened == ["b:2", "c:3", "d:4", "b:2"]


async def test_a_node_elsewhere_may_not_send_a_device_to_its_own_loopback() -> None:
    now = [float(NOW)]
    far = Told("far:1", listing("127.0.0.1:9", "unix:/x", "localhost:1", "b:2"))
    found = await locator(far, now=now)[0].refresh([far])
    assert [one.address for one in found] == ["b:2"]
    near = Told("127.0.0.1:1", listing("127.0.0.1:9"), local=True)
    found = await locator(near, now=now)[0].refresh([near])
    assert [one.address for one in found] == ["127.0.0.1:9"]


@pytest.mark.parametrize("trouble", [InvalidRequest("alone"), listing(), listing("127.0.0.1:1")])
async def test_what_is_known_stays_where_nothing_can_be_learnt(trouble: Any) -> None:
    now = [float(NOW)]
    seed = Told("a:1", trouble)
    follow, _ = locator(seed, now=now)
    assert [one.address for one in await follow.refresh([seed])] == ["a:1"]
    await follow.refresh([seed])
    assert seed.asked == 1


async def test_when_one_cannot_say_the_next_is_asked() -> None:
    now = [float(NOW)]
    down = Told("a:1", TransportError("gone"))
    up = Told("b:2", listing("b:2"))
    found = await locator(down, up, now=now)[0].refresh([down, up])
    assert [one.address for one in found] == ["b:2"]


async def test_who_lost_a_node_asks_before_the_time_and_that_node_last() -> None:
    now = [float(NOW)]
    lost, other = Told("a:1", listing("a:1", "b:2")), Told("b:2", listing("a:1", "b:2"))
    follow, _ = locator(lost, other, now=now)
    found = await follow.refresh([lost, other])
    lost.told = other.told = listing("b:2", "c:3")
    assert await follow.refresh_without(lost, found) is found  # it was asked this moment
    now[0] += 1
    found = await follow.refresh_without(lost, found)
    assert [one.address for one in found] == ["b:2", "c:3"]
    assert (lost.asked, other.asked) == (1, 1)


async def test_a_node_that_says_nothing_is_not_waited_for_and_puts_nothing_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("overspill.locating.LOST_WAIT_S", 0.02)
    now = [float(NOW)]
    lost, frozen = Told("a:1", listing("a:1", "b:2")), Told("b:2", listing())
    follow, _ = locator(lost, frozen, now=now)
    found = await follow.refresh([lost, frozen])
    now[0] += 29

    async def nothing() -> tuple[bytes, bytes]:
        frozen.asked += 1
        return await asyncio.get_running_loop().create_future()

    frozen.transport.locate = nothing
    assert await follow.refresh_without(lost, found) is found
    assert frozen.asked == 1
    now[0] += 1  # the list from before is over now
    lost.told = listing("c:3")
    assert [one.address for one in await follow.refresh([lost])] == ["c:3"]


def test_a_session_moves_only_when_its_own_replica_goes() -> None:
    replicas: list[Any] = [Told(f"r{n}:1", listing()) for n in range(5)]
    for n in range(64):
        sticky = bytes([n]) * 16
        first, *_ = by_rendezvous(replicas, sticky)
        for gone in replicas:
            left = [one for one in replicas if one is not gone]
            now_first = by_rendezvous(left, sticky)[0]
            assert (now_first is first) == (gone is not first)


def test_a_file_of_addresses_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "addresses"
    reader = AddressFile(path)
    assert reader.read() == ()
    write_addresses(path, ["a:1", "b:2"])
    assert reader.read() == ("a:1", "b:2")
    write_addresses(path, ["c:3"])
    assert reader.read() == ("c:3",)
    path.unlink()
    assert reader.read() == ("c:3",)
    assert AddressFile(None).read() == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nodes.example:8443", ("10.0.0.1:8443", "10.0.0.7:8443", "[fd00::1]:8443")),
        (
            "*.nodes.example:8443",
            (
                "10-0-0-1.nodes.example:8443",
                "10-0-0-7.nodes.example:8443",
                "fd00--1.nodes.example:8443",
            ),
        ),
    ],
)
def test_a_name_tells_who_is_behind_it_now(text: str, told: tuple[str, ...]) -> None:
    asked: list[str] = []
    answers: list[list[str] | OSError] = [
        OSError("no such name yet"),
        ["10.0.0.7", "10.0.0.1", "fd00::1", "10.0.0.7"],
        OSError("the name server is gone"),
        [],
        ["10.0.0.9"],
    ]

    def resolver(name: str) -> list[str]:
        asked.append(name)
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    names = DnsReplicas(text, resolver)
    seen = [names.read()]
    while answers:
        names.refresh()
        seen.append(names.read())
    assert set(asked) == {"nodes.example"}
    assert seen[:2] == [(), ()]
    assert seen[2:5] == [told] * 3
    assert len(seen[5]) == 1


@pytest.mark.parametrize(
    "text",
    ["nodes.example", "nodes.example:", ":1", "*.:1", "*:1", "a:0", "a:65536", "a:x", "*.*.a:1"],
)
def test_what_names_no_replicas_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="names no replicas"):
        DnsReplicas(text)


async def test_a_node_tells_who_this_machines_resolver_names(tmp_path: Path) -> None:
    options = NodeOptions(
        (ModelSpec("echo", "echo"),),
        f"unix:{tmp_path}/n.sock",
        tmp_path / "state",
        replicas_dns="localhost:8443",
    )
    expected = {f"[{one}]:8443" if ":" in one else f"{one}:8443" for one in resolve("localhost")}
    assert "127.0.0.1:8443" in expected
    async with serve(options, log_to=io.StringIO()) as node:
        road = GrpcTransport(node.listen)
        while True:  # until it was asked for the first time
            try:
                data, _ = await road.locate()
                break
            except InvalidRequest:
                await asyncio.sleep(0.01)
        await road.aclose()
    assert set(plaintext.replicas_from_bytes(data).addresses) == expected


@pytest.mark.parametrize(("line", "asks"), [("locate = true", True), ("", False)])
def test_settings_say_whether_replicas_are_asked_for(tmp_path: Path, line: str, asks: bool) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'device_key = "file"\n[cloud]\naddress = "127.0.0.1:1"\n{line}\n')
    settings = load_settings(file, environ={"OVERSPILL_HOME": str(tmp_path)})
    assert settings.cloud is not None
    assert settings.cloud.locate is asks
    assert (open_cloud(settings)._locator is not None) is asks


def in_fleet(folder: Path, name: str) -> NodeOptions:
    """A node that tells whoever stands in ``folder/addresses``."""
    return NodeOptions(
        (ModelSpec("echo", "echo"),),
        f"unix:{folder}/{name}.sock",
        folder / "state",
        replicas=folder / "addresses",
    )


async def test_a_device_that_knows_one_node_is_answered_by_another(tmp_path: Path) -> None:
    addresses = tmp_path / "addresses"
    async with (
        serve(in_fleet(tmp_path, "one"), log_to=io.StringIO()) as one,
        serve(in_fleet(tmp_path, "two"), log_to=io.StringIO()) as two,
    ):
        digests = {"echo": one.models["echo"].sha256}
        policy = parse_policy(dev_policy(bytes.fromhex(one.dev_root), digests))
        key = SoftwareKey.generate(FAR)
        store = Store(tmp_path / "state")
        client = RemoteEngine(GrpcTransport(one.listen), policy, key, open_road=GrpcTransport)
        await client.enroll(store.new_code(FAR))
        store.close()
        assert client.address == one.listen  # all that it knows, so far
        write_addresses(addresses, [two.listen])
        async with client:
            request = Request((Message("user", "hi"),), max_tokens=16)
            assert [chunk async for chunk in client.generate(request)]
            assert client.address == two.listen


async def test_a_node_that_leaves_still_says_who_is_there_instead(tmp_path: Path) -> None:
    """A device that learnt of it a moment ago, and of nobody else, comes to another one."""
    addresses = tmp_path / "addresses"
    write_addresses(addresses, [])
    leaves, serves = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def one_node() -> None:
        async with serve(in_fleet(tmp_path, "one"), log_to=io.StringIO()) as node:
            serves.set_result(node)
            await leaves.wait()

    running = asyncio.create_task(one_node())
    one = await serves
    async with serve(in_fleet(tmp_path, "two"), log_to=io.StringIO()) as two:
        digests = {"echo": one.models["echo"].sha256}
        policy = parse_policy(dev_policy(bytes.fromhex(one.dev_root), digests))
        key = SoftwareKey.generate(FAR)
        client = RemoteEngine(GrpcTransport(two.listen), policy, key)
        store = Store(tmp_path / "state")
        await client.enroll(store.new_code(FAR))
        store.close()
        await client.aclose()
        write_addresses(addresses, [two.listen])
        leaves.set()
        while not one.node.is_draining:  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.3)  # nothing runs there: without others it would be gone by now
        client = RemoteEngine(GrpcTransport(one.listen), policy, key, open_road=GrpcTransport)
        async with client:
            request = Request((Message("user", "hi"),), max_tokens=16)
            assert [chunk async for chunk in client.generate(request)]
            assert client.address == two.listen
        await running


class Leaving:
    """Slow nodes in one folder, each of which can be made to leave; they give streams 0.1 s."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}

    async def start(self, name: str) -> Serving:
        ready, leaves = asyncio.get_running_loop().create_future(), asyncio.Event()

        async def run() -> None:
            slow = EngineOptions(token_delay_s=0.01)
            options = replace(in_fleet(self.folder, name), engine=slow, drain_timeout_s=0.1)
            async with serve(options, log_to=io.StringIO()) as node:
                ready.set_result(node)
                await leaves.wait()

        task = asyncio.create_task(run())
        node: Serving = await ready
        self._running[node.listen] = leaves, task
        return node

    async def end(self, address: str) -> None:
        leaves, task = self._running.pop(address)
        leaves.set()
        await task

    async def client(self, node: Serving, **options: Any) -> RemoteEngine:
        digests = {"echo": node.models["echo"].sha256}
        policy = parse_policy(dev_policy(bytes.fromhex(node.dev_root), digests))
        key = SoftwareKey.generate(FAR)
        client = RemoteEngine(GrpcTransport(node.listen), policy, key, **options)
        store = Store(self.folder / "state")
        await client.enroll(store.new_code(FAR))
        store.close()
        return client

    async def __aenter__(self) -> Leaving:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(self.end(address) for address in tuple(self._running)))


async def test_an_answer_outlives_every_node_that_was_there_when_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overspill.locating.LOST_AGAIN_S", 0.0)
    addresses = tmp_path / "addresses"
    request = Request((Message("user", "x " * 300),), max_tokens=1000)
    text, endings = "", list[asyncio.Task[None]]()
    async with Leaving(tmp_path) as nodes:
        one, two = [await nodes.start(name) for name in ("one", "two")]
        write_addresses(addresses, [one.listen, two.listen])
        async with await nodes.client(one, open_road=GrpcTransport) as client:
            async for chunk in client.generate(request):
                text += chunk.text
                if not endings:
                    first, second = client.addresses
                    endings.append(asyncio.create_task(nodes.end(first)))
                elif len(endings) == 1 and client.moves(request.id):
                    third = await nodes.start("three")
                    write_addresses(addresses, [third.listen])
                    endings.append(asyncio.create_task(nodes.end(second)))
            await asyncio.gather(*endings)
            assert text.strip() == "echo: " + ("x " * 300).strip()
            assert len(client.moves(request.id)) == 2
            assert client.addresses == (third.listen,)


async def test_who_was_moved_finds_the_node_there_to_ask_where_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for a machine that does much else.
    monkeypatch.setattr("overspill_cloud.node.MOVED_S", 2.0)
    async with Leaving(tmp_path) as nodes:
        one = await nodes.start("one")
        write_addresses(tmp_path / "addresses", ["elsewhere:1"])
        async with await nodes.client(one) as client:
            request = Request((Message("user", "x " * 300),), max_tokens=1000)
            chunks = client.generate(request)
            await anext(chunks)
            ending = asyncio.create_task(nodes.end(one.listen))
            with pytest.raises(Migrated):
                await anext(chunk async for chunk in chunks if chunk.finish)
            await asyncio.sleep(0.2)  # the node has drained by now, and nothing runs there
            road = GrpcTransport(one.listen)
            data, _ = await road.locate()
            await road.aclose()
            assert plaintext.replicas_from_bytes(data).addresses == ("elsewhere:1",)
        await ending


@pytest.mark.parametrize(
    ("fleet", "drain_s", "leaving_s"),
    [
        ({}, 20.0, 0.0),
        ({"replicas": Path("addresses")}, 20.0, 2.0),
        ({"replicas": Path("addresses")}, 0.5, 0.5),
        ({"replicas_dns": "nodes.example:8443"}, 20.0, 2.0),
    ],
)
def test_only_a_node_that_has_others_stays_to_name_them(
    fleet: dict[str, Any], drain_s: float, leaving_s: float
) -> None:
    options = NodeOptions((), "", Path(), drain_timeout_s=drain_s, **fleet)
    assert options.leaving_s == leaving_s
