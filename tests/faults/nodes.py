"""Nodes as processes of their own over one state folder, and clients for them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from faults.namespace import LinkedNamespace
from faults.tls import write_certificate

from overspill.exchange import ExchangeLimits
from overspill.identity.keys import SoftwareKey
from overspill.remote import RemoteEngine, RemoteOptions
from overspill.transport.grpc import GrpcOptions, GrpcTransport
from overspill.trust.policy import TrustPolicy, parse_policy
from overspill.trust.template import dev_policy, pinned_policy

FAR_UNIX = 1 << 40


@dataclass
class NodeProcess:
    """One ``overspill-cloud serve``; ``kill`` and ``start`` keep its port."""

    fleet: Fleet
    number: int
    process: subprocess.Popen[str] | None = None
    listen: str = "127.0.0.1:0"
    dev_root: str = ""
    prefix: Sequence[str] = ()
    """Before the command: where else than on this machine's own network it runs."""
    extra: Sequence[str] = ()
    """Options of this node alone."""
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.fleet.folder / f"node-{self.number}.log"

    def start(self) -> None:
        fleet = self.fleet
        command = [*self.prefix, sys.executable, str(Path(__file__).with_name("echo_node.py"))]
        command += ["--listen", self.listen, "--state", str(fleet.folder / "state")]
        command += ["--tls-cert", str(fleet.certificate), "--tls-key", str(fleet.key_file)]
        with self.log.open("a") as err:
            self.process = subprocess.Popen(
                [*command, *fleet.options, *self.extra],
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env=environment_on(fleet.site),
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.log.read_text()[-2000:])
        facts = json.loads(line)
        self.listen, self.dev_root = facts["listen"], facts.get("dev_root", "")

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
                self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def ended(self) -> int:
        """Streams that it logged as ended."""
        return self.log.read_text().count('"StreamEnded"')

    def cancelled_before_a_word(self) -> int:
        """Streams that were taken, and cancelled before their engine said anything."""
        events = map(json.loads, filter(_is_event, self.log.read_text().splitlines()))
        return sum(
            event.get("outcome") == "cancelled" and event["completion_tokens_le"] == 0
            for event in events
        )

    def refused(self) -> int:
        return self.log.read_text().count('"RequestRefused"')


@dataclass
class Fleet:
    """Some nodes; leave through ``running``."""

    folder: Path
    options: Sequence[str] = ()
    nodes: list[NodeProcess] = field(default_factory=list)
    key: SoftwareKey = field(default_factory=lambda: SoftwareKey.generate(FAR_UNIX))
    site: Path | None = None
    """A folder of packages that come before the installed ones."""
    trusted: bytes = b""
    """The certificates (PEM) that new clients take; none: the one that is in place."""
    operator: bytes = b""
    """The operator's public key, where that vouches for the nodes."""

    @property
    def certificate(self) -> Path:
        return self.folder / "tls.crt"

    @property
    def key_file(self) -> Path:
        return self.folder / "tls.key"

    def policy(self) -> TrustPolicy:
        models = {"echo": hashlib.sha256().digest()}
        if self.operator:
            return parse_policy(pinned_policy(self.operator, models))
        return parse_policy(dev_policy(bytes.fromhex(self.nodes[0].dev_root), models))

    def client(
        self,
        addresses: Sequence[str] | None = None,
        *,
        key: SoftwareKey | None = None,
        options: RemoteOptions | None = None,
        road: Callable[[str, GrpcOptions], GrpcTransport] = GrpcTransport,
        **limits: float,
    ) -> RemoteEngine:
        authorities = self.trusted or self.certificate.read_bytes()
        tls = GrpcOptions(ca_pem=authorities, server_name="localhost")
        found = addresses or [node.listen for node in self.nodes]
        return RemoteEngine(
            [road(address, tls) for address in found],
            self.policy(),
            key or self.key,
            options or RemoteOptions(limits=ExchangeLimits(**limits)),
        )

    def code(self) -> str:
        """An enrolment code, by the operator's own command."""
        command = [sys.executable, "-m", "overspill_cloud", "enroll-code", "--json"]
        command += ["--state", str(self.folder / "state")]
        return str(json.loads(subprocess.check_output(command, text=True))["code"])

    async def enrol(self, key: SoftwareKey | None = None) -> None:
        engine = self.client(key=key)
        await engine.enroll(await asyncio.to_thread(self.code))
        await engine.aclose()


def _is_event(line: str) -> bool:
    return line.startswith('{"minute_unix"')


def environment_on(site: Path | None) -> dict[str, str]:
    """This process's environment, for one that finds the packages of ``site`` first."""
    environment = dict(os.environ)
    if site is not None:
        paths = [str(site), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment


def pin_operator(fleet: Fleet) -> None:
    """Let an operator's key vouch for the fleet: development evidence never leaves loopback."""
    key = ed25519.Ed25519PrivateKey.generate()
    path = fleet.folder / "state" / "operator.key"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    fleet.operator = key.public_key().public_bytes_raw()
    fleet.options = (*fleet.options, "--attester", "pinned")


@contextmanager
def running(
    folder: Path,
    count: int,
    *options: str,
    behind: LinkedNamespace | None = None,
    site: Path | None = None,
) -> Iterator[Fleet]:
    """``count`` nodes of ``echo`` over one state folder, with TLS; the first ``behind`` a link of
    its own, all with the packages of ``site`` before those that are installed."""
    folder.mkdir(exist_ok=True)
    fleet = Fleet(folder, options, site=site)
    write_certificate(fleet.certificate, fleet.key_file)
    try:
        if behind is not None:
            pin_operator(fleet)
        for number in range(count):
            node = NodeProcess(fleet, number)
            if behind is not None and number == 0:
                node.prefix, node.listen = behind.prefix, f"{behind.there}:8443"
            fleet.nodes.append(node)
            node.start()
        yield fleet
    finally:
        for node in fleet.nodes:
            node.stop()


def rss_bytes(process: subprocess.Popen[str]) -> int:
    """Resident memory of a process (Linux)."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def until(condition, within_s: float) -> float:  # type: ignore[no-untyped-def]
    """Seconds until ``condition()`` held; infinite when it never did."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > within_s:
            return float("inf")
        await asyncio.sleep(0.05)
    return time.monotonic() - begun
