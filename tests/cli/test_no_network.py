"""Nothing phones home: in a network namespace of its own, the kernel counts what is tried."""

import os
import shutil
import subprocess
import sys

import pytest

COUNTERS = {"Ip": "OutRequests", "Tcp": "ActiveOpens", "Udp": "OutDatagrams"}


def unshare() -> list[str]:
    program = shutil.which("unshare")
    if program is None:
        pytest.skip("unshare is not installed; on Debian: apt-get install util-linux")
    command = [program, "--net"] if os.geteuid() == 0 else [program, "--map-root-user", "--net"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this kernel lets nobody make a network namespace here")
    return command


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize("extra", [[], ["--cloud", "203.0.113.7:443", "--privacy", "device"]])
def test_an_answer_on_the_device_tries_no_network(verb, extra, tmp_path):
    script = '"$@" && echo === && cat /proc/net/snmp'
    asked = [sys.executable, "-m", "overspill.cli.main", verb, "Sort: 3, 1, 2", *extra]
    done = subprocess.run(
        [*unshare(), "sh", "-c", script, "sh", *asked],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OVERSPILL_HOME": str(tmp_path), "OVERSPILL_MODEL": "echo"},
    )
    assert done.returncode == 0, done.stderr
    counted = counters(done.stdout.split("===\n")[1])
    assert counted == dict.fromkeys(COUNTERS, 0)


def test_the_counters_do_count(tmp_path):
    script = '"$@"; cat /proc/net/snmp'
    send = "import socket as s; u = s.socket(2, 2); u.connect(('127.0.0.1', 9)); u.send(b'x')"
    up = "ip link set lo up; " if shutil.which("ip") else ""
    done = subprocess.run(
        [*unshare(), "sh", "-c", up + script, "sh", sys.executable, "-c", send],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if not up:
        pytest.skip("ip is not installed; on Debian: apt-get install iproute2")
    assert counters(done.stdout)["Udp"] == 1


def counters(snmp: str) -> dict[str, int]:
    lines = [line.split() for line in snmp.splitlines()]
    found = {}
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        protocol = names[0].rstrip(":")
        if protocol in COUNTERS:
            found[protocol] = int(values[names.index(COUNTERS[protocol])])
    return found
