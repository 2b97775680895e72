"""Runs a command in this network namespace behind a tap, and counts what comes out of it.

``python tapped.py COMMAND...``, in a namespace of its own: brings loopback up, makes a tap device
with an address, a default route and a name server behind it, runs the command, and writes
``{"returncode", "tap_frames", "lo_packets"}`` as its last line. So whatever would have gone to a
cloud, or asked for a name, is a frame (an ARP request, at the least) on the tap.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
FRAME_BYTES = 2048


def open_tap() -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", b"tap0", IFF_TAP | IFF_NO_PI))
    # The kernel's own greetings (router solicitations) are nobody's doing.
    Path("/proc/sys/net/ipv6/conf/tap0/disable_ipv6").write_text("1")
    for line in (
        "link set lo up",
        "addr add 192.0.2.1/24 dev tap0",
        "link set tap0 up",
        "route add default via 192.0.2.2",
    ):
        subprocess.run(["ip", *line.split()], check=True)
    return tap


def names_behind_the_tap() -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".conf", delete=False) as file:
        file.write("nameserver 192.0.2.2\noptions timeout:1 attempts:1\n")
    subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)


def frames(tap: int) -> int:
    found = 0
    while True:
        try:
            os.read(tap, FRAME_BYTES)
        except BlockingIOError:
            return found
        found += 1


def loopback_packets() -> int:
    line = next(x for x in Path("/proc/net/dev").read_text().splitlines() if " lo:" in x)
    return int(line.split()[2])


def main() -> None:
    names_behind_the_tap()
    tap = open_tap()
    done = subprocess.run(sys.argv[1:])
    told = {
        "returncode": done.returncode,
        "tap_frames": frames(tap),
        "lo_packets": loopback_packets(),
    }
    print(f"\n{json.dumps(told)}")


if __name__ == "__main__":
    main()
