"""What a process holds: by macOS' struct as its header lays it out, and by this machine."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import subprocess
import sys

import pytest

from overspill.engines import process_footprint as module
from overspill.engines.process_footprint import parse_rusage_v4, process_footprint

MIB = 1 << 20
# struct rusage_info_v4 of <sys/resource.h>, in its order, behind the UUID of 16 bytes.
FIELDS = """
    user_time system_time pkg_idle_wkups interrupt_wkups pageins wired_size resident_size
    phys_footprint proc_start_abstime proc_exit_abstime child_user_time child_system_time
    child_pkg_idle_wkups child_interrupt_wkups child_pageins child_elapsed_abstime
    diskio_bytesread diskio_byteswritten cpu_time_qos_default cpu_time_qos_maintenance
    cpu_time_qos_background cpu_time_qos_utility cpu_time_qos_legacy
    cpu_time_qos_user_initiated cpu_time_qos_user_interactive billed_system_time
    serviced_system_time logical_writes lifetime_max_phys_footprint instructions cycles
    billed_energy serviced_energy interval_max_phys_footprint runnable_time
""".split()
FOOTPRINT, RESIDENT = 731 * MIB, 402 * MIB


def usage(**known):
    values = [known.get(field, 1000 + n) for n, field in enumerate(FIELDS)]
    return bytes(range(16)) + struct.pack(f"<{len(FIELDS)}Q", *values)


USAGE = usage(phys_footprint=FOOTPRINT, resident_size=RESIDENT)


def rusage_of(pid):
    """``proc_pid_rusage`` where this is the only process."""

    def rusage(asked, flavor, buffer):
        if asked != pid or flavor != 4:
            ctypes.set_errno(errno.ESRCH)
            return -1
        assert ctypes.sizeof(buffer) == len(USAGE)
        ctypes.memmove(buffer, USAGE, len(USAGE))
        return 0

    return rusage


def test_macos_footprint_is_read_from_the_struct_and_not_the_resident_size():
    assert parse_rusage_v4(USAGE) == FOOTPRINT


def test_on_macos_a_process_is_asked_for_its_footprint(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(module, "_proc_pid_rusage", lambda: rusage_of(os.getpid()))
    assert process_footprint() == FOOTPRINT
    with pytest.raises(ProcessLookupError):
        process_footprint(os.getpid() + 1)


@pytest.mark.skipif(sys.platform != "darwin", reason="macOS only: asks libproc")
def test_this_mac_counts_what_was_just_written():
    before = process_footprint()
    held = b"\x01" * (64 * MIB)
    assert process_footprint() - before > len(held) / 2


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: reads /proc")
def test_on_linux_it_is_the_resident_size():
    before = process_footprint()
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        assert process_footprint(os.getpid()) - before > len(held) / 2


def test_a_process_that_has_ended_is_not_found():
    with subprocess.Popen([sys.executable, "-I", "-c", ""]) as process:
        process.wait()
    with pytest.raises(ProcessLookupError):
        process_footprint(process.pid)


def test_psutil_tells_where_there_is_no_proc(monkeypatch, tmp_path):
    pytest.importorskip("psutil", reason="psutil is not installed (extra 'edge')")
    monkeypatch.setattr(module, "_PROC", tmp_path)
    assert process_footprint() > MIB
    with subprocess.Popen([sys.executable, "-I", "-c", ""]) as process:
        process.wait()
    with pytest.raises(ProcessLookupError):
        process_footprint(process.pid)
