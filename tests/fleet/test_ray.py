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
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture
def fleet(tmp_path: Path, ray_environment: dict[str, str]) -> Iterator[list[dict[str, Any]]]:
    """Two nodes that Ray placed: what each printed when it was ready."""
    log = tmp_path / "log"
    command = [
        *(sys.executable, "-m", "overspill_cloud", "fleet", "up", "--replicas", "2", "--ray"),
        *("--json", "--addresses", str(tmp_path / "addresses")),
        *("--", "--model", "echo=echo", "--state", str(tmp_path / "state")),
    ]
    with log.open("w") as err:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=err, text=True, env=ray_environment
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
