"""The same fleet placed by Ray Serve: a node to a replica, replaced when it dies. Short: Ray alone
takes ten seconds to start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="ray is not installed: pip install 'overspill[fleet]'")

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


async def test_a_node_that_dies_is_replaced_and_a_device_answered(tmp_path: Path) -> None:
    addresses, log = tmp_path / "addresses", tmp_path / "log"
    command = [
        *(sys.executable, "-m", "overspill_cloud", "fleet", "up", "--replicas", "2", "--ray"),
        *("--json", "--addresses", str(addresses)),
        *("--", "--model", "echo=echo", "--state", str(tmp_path / "state")),
    ]
    with log.open("w") as err:
        fleet = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
    try:
        assert fleet.stdout is not None
        watchdog = threading.Timer(150, fleet.kill)
        watchdog.start()
        line = next((one for one in fleet.stdout if one.startswith("{")), "")
        assert line, log.read_text()[-3000:]
        nodes = json.loads(line)["nodes"]
        assert len({node["listen"] for node in nodes}) == 2
        told = AddressFile(addresses)
        until(lambda: len(told.read()) == 2)
        os.kill(nodes[0]["pid"], signal.SIGKILL)
        until(lambda: len(told.read()) == 2 and nodes[0]["listen"] not in told.read())
        policy = dev_policy(bytes.fromhex(nodes[0]["dev_root"]), {"echo": sha256().digest()})
        client = RemoteEngine(
            GrpcTransport(nodes[1]["listen"]),
            parse_policy(policy),
            SoftwareKey.generate(FAR),
            open_road=GrpcTransport,
        )
        store = Store(tmp_path / "state")
        await client.enroll(store.new_code(FAR))
        store.close()
        async with client:
            request = Request((Message("user", "hi"),), max_tokens=16)
            text = "".join([chunk.text async for chunk in client.generate(request)])
        assert text == "echo: hi"
    finally:
        fleet.terminate()
        fleet.wait(60)
        watchdog.cancel()
