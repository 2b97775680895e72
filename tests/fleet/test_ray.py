"""The same fleet placed by Ray Serve: a node to a replica, replaced when it dies. Short: Ray alone
takes ten seconds to start."""

from __future__ import annotations

import datetime
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from overspill.identity.keys import SoftwareKey
from overspill.remote import RemoteEngine
from overspill.transport.grpc import GrpcTransport
from overspill.trust.policy import parse_policy
from overspill.trust.template import dev_policy
from overspill.types.chat import Message, Request
from overspill_cloud.fleet.addresses import AddressFile
from overspill_cloud.store import Store

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]
FAR = 1 << 40


def until(holds: Callable[[], bool], within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.05)


@contextmanager
def running(
    folder: Path, environment: dict[str, str], own: list[str], serve: list[str]
) -> Iterator[list[dict[str, Any]]]:
    """Nodes that Ray placed: what each printed when it was ready."""
    log = folder / "log"
    command = [
        *(sys.executable, "-m", "overspill_cloud", "fleet", "up", "--ray", "--json", *own),
        *("--addresses", str(folder / "addresses")),
        *("--", "--model", "echo=echo", "--state", str(folder / "state"), *serve),
    ]
    with log.open("w") as err:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=err, text=True, env=environment
        )
    watchdog = threading.Timer(150, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        line = next((one for one in process.stdout if one.startswith("{")), "")
        assert line, log.read_text()[-3000:]
        yield json.loads(line)["nodes"]
    finally:
        process.terminate()
        process.wait(60)
        watchdog.cancel()


@pytest.fixture
def fleet(tmp_path: Path, ray_environment: dict[str, str]) -> Iterator[list[dict[str, Any]]]:
    """Two nodes on loopback."""
    with running(tmp_path, ray_environment, ["--replicas", "2"], []) as nodes:
        yield nodes


def write_pair(certificate: Path, key_file: Path) -> None:
    """A self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "node")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    certificate.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    key_file.write_bytes(secret)


def test_beyond_loopback_a_node_tells_the_address_of_its_machine(
    tmp_path: Path, ray_environment: dict[str, str]
) -> None:
    certificate, key = tmp_path / "node.pem", tmp_path / "node.key"
    write_pair(certificate, key)
    tls = ["--tls-cert", str(certificate), "--tls-key", str(key)]
    with running(tmp_path, ray_environment, ["--replicas", "1", "--host", "0.0.0.0"], tls) as nodes:
        host, _, port = nodes[0]["listen"].rpartition(":")
        assert not ip_address(host.strip("[]")).is_unspecified
        # It is there, by its own certificate.
        served = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=10)
        assert served.strip() == certificate.read_text().strip()


async def test_a_node_that_dies_is_replaced_and_a_device_answered(
    fleet: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert len({node["listen"] for node in fleet}) == 2
    told = AddressFile(tmp_path / "addresses")
    until(lambda: len(told.read()) == 2)
    os.kill(fleet[0]["pid"], signal.SIGKILL)
    until(lambda: len(told.read()) == 2 and fleet[0]["listen"] not in told.read())
    policy = dev_policy(bytes.fromhex(fleet[0]["dev_root"]), {"echo": sha256().digest()})
    road = GrpcTransport(fleet[1]["listen"])
    key = SoftwareKey.generate(FAR)
    client = RemoteEngine(road, parse_policy(policy), key, open_road=GrpcTransport)
    store = Store(tmp_path / "state")
    await client.enroll(store.new_code(FAR))
    store.close()
    async with client:
        request = Request((Message("user", "hi"),), max_tokens=16)
        text = "".join([chunk.text async for chunk in client.generate(request)])
    assert text == "echo: hi"
    # Now Serve's replica and not its node: Ray places another, and nobody's child is left.
    lost = psutil.Process(fleet[1]["pid"])
    lost.parent().kill()
    until(lambda: len(set(told.read()) - {fleet[1]["listen"]}) == 2)
    until(lambda: not lost.is_running() or lost.status() == psutil.STATUS_ZOMBIE, 20)
