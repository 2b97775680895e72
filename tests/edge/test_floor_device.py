"""Under the floor ``device`` nothing leaves, whatever is configured and whatever breaks.

In a network namespace that has loopback and a tap: a cloud, credentials and a generous consent are
there, the engine's worker is killed, and the tap counts frames: no packet, no look-up.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def tapped(*command: str, home: Path, floor: str = "device") -> tuple[dict[str, int], str]:
    """Run it behind the tap: what was counted, and what it wrote on stderr."""
    if not Path("/dev/net/tun").exists() or shutil.which("ip") is None:
        pytest.skip("a tap needs /dev/net/tun and ip; on Debian: apt-get install iproute2")
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    alone = ["unshare", *mapped, "--net", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"]).returncode:
        pytest.skip("this kernel lets nobody make a network namespace here")
    (home / "config").mkdir(exist_ok=True)
    (home / "config" / "config.toml").write_text(
        f'privacy = "{floor}"\ndevice_key = "file"\nmodel = "brook"\n'
        '[cloud]\naddress = "node.example:8443,203.0.113.7:8443"\n'
    )
    done = subprocess.run(
        [*alone, sys.executable, str(HERE / "tapped.py"), *command],
        env={**os.environ, "OVERSPILL_HOME": str(home), "OPENAI_API_KEY": "sk-there"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    counted: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return counted, done.stderr


@pytest.mark.parametrize(("way", "floor"), [("sdk", "any"), ("daemon", "device")])
def test_no_packet_and_no_look_up_while_the_engine_crashes(home, way, floor):
    """Also where only the request, and not the settings, have the floor."""
    pytest.importorskip("llama_cpp", reason="the extra llama is not installed")
    counted, said = tapped(sys.executable, str(HERE / "floored.py"), way, home=home, floor=floor)
    assert counted["returncode"] == 0, said
    assert (counted["tap_frames"], counted["lo_packets"]) == (0, 0)


@pytest.mark.parametrize(
    "attempt",
    [
        "s.create_connection(('203.0.113.7', 8443), 1)",
        "s.getaddrinfo('node.example', 8443)",
        "s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))",
    ],
)
def test_whatever_is_tried_is_counted(home, attempt):
    counted, _ = tapped(sys.executable, "-c", f"import socket as s; {attempt}", home=home)
    assert counted["tap_frames"] + counted["lo_packets"] > 0
