"""Nothing phones home: in a network namespace of its own, the kernel counts what is tried."""

import os
import shutil
import subprocess
import sys

import pytest

# OutNoRoutes counts what was tried where there is no road at all, as here.
COUNTERS = {
    "Ip": ("OutRequests", "OutNoRoutes"),
    "Tcp": ("ActiveOpens",),
    "Udp": ("OutDatagrams",),
}


def unshare() -> list[str]:
    program = shutil.which("unshare")
    if program is None:
        pytest.skip("unshare is not installed; on Debian: apt-get install util-linux")
    command = [program, "--net"] if os.geteuid() == 0 else [program, "--map-root-user", "--net"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this kernel lets nobody make a network namespace here")
    return command


OVERSPILL = [sys.executable, "-m", "overspill.cli.main"]
SERVED = """
import subprocess, sys
from overspill import Overspill

command = [sys.executable, "-m", "overspill.cli.main", "serve", "--json"]
with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
    daemon.stdout.readline()
    with Overspill(app="t", daemon="require") as ai:
        print(ai.chat("Sort: 3, 1, 2").route.route)
    daemon.terminate()
assert daemon.returncode == 0
"""
OFFLINE = {
    "import": [sys.executable, "-c", "import overspill, overspill_edge, overspill_cloud"],
    "run": [*OVERSPILL, "run", "Sort: 3, 1, 2"],
    "plan": [*OVERSPILL, "plan", "Sort: 3, 1, 2"],
    "chat": [*OVERSPILL, "chat"],
    "doctor": [*OVERSPILL, "doctor"],
    "models": [*OVERSPILL, "models", "catalog"],
    "serve": [sys.executable, "-c", SERVED],
    "run, with a cloud that may not be asked": [
        *(*OVERSPILL, "run", "Sort: 3, 1, 2"),
        *("--cloud", "203.0.113.7:443", "--privacy", "device"),
    ],
    "plan, with a cloud that may not be asked": [
        *(*OVERSPILL, "plan", "Sort: 3, 1, 2"),
        *("--cloud", "node.example:443", "--privacy", "device"),
    ],
}


@pytest.mark.parametrize("what", OFFLINE)
def test_what_works_on_the_device_tries_no_network(what, tmp_path):
    """Nothing phones home: what works on the device tries no network."""
    script = '"$@" && echo === && cat /proc/net/snmp'
    done = subprocess.run(
        [*unshare(), "sh", "-c", script, "sh", *OFFLINE[what]],
        capture_output=True,
        text=True,
        timeout=100,
        input="Sort: 3, 1, 2\n",
        env={**os.environ, "OVERSPILL_HOME": str(tmp_path), "OVERSPILL_MODEL": "echo"},
    )
    assert done.returncode == 0, done.stderr
    counted = counters(done.stdout.split("===\n")[1])
    assert not any(counted.values()), counted


@pytest.mark.parametrize(
    "attempt",
    [
        "s.create_connection(('203.0.113.7', 443), 5)",
        "s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'x', ('203.0.113.7', 53))",
        "s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))",
    ],
)
def test_whatever_is_tried_is_counted(attempt):
    script = '"$@" 2>/dev/null; cat /proc/net/snmp'
    asked = [sys.executable, "-c", f"import socket as s; {attempt}"]
    done = subprocess.run(
        [*unshare(), "sh", "-c", script, "sh", *asked], capture_output=True, text=True, timeout=60
    )
    assert any(counters(done.stdout).values())


def counters(snmp: str) -> dict[str, int]:
    lines = [line.split() for line in snmp.splitlines()]
    found = {}
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        protocol = names[0].rstrip(":")
        for counter in COUNTERS.get(protocol, ()):
            found[f"{protocol}.{counter}"] = int(values[names.index(counter)])
    assert len(found) == sum(map(len, COUNTERS.values()))
    return found
