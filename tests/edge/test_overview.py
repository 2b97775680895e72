"""What the overview says of this machine's memory."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys

from overspill.engines import process_footprint as footprints
from overspill_edge.overview import _memory

FOOTPRINT = 123 << 20


def test_on_macos_the_daemon_and_its_workers_count_by_their_footprints(monkeypatch):
    def rusage(pid, flavor, buffer):
        ctypes.memset(buffer, 0xEE, ctypes.sizeof(buffer))
        struct.pack_into("<Q", buffer, 16 + 7 * 8, FOOTPRINT)
        return 0

    with subprocess.Popen([sys.executable, "-I", "-c", "input()"], stdin=subprocess.PIPE) as worker:
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(footprints, "_proc_pid_rusage", lambda: rusage)
        held = _memory()["daemon_bytes"]
        monkeypatch.undo()
        worker.communicate(b"\n")
    # Each process counts as much here, and others of this test run may be among them.
    assert held >= 2 * FOOTPRINT
    assert held % FOOTPRINT == 0
