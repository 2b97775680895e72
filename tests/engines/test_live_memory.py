"""What is free: read from recorded files and output of each system, and from this machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from overspill.engines import live_memory

# Of a MacBook with 16 GiB under some load; the page size makes the difference.
VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               32543.
Pages active:                            372413.
Pages inactive:                          350012.
Pages speculative:                        21345.
Pages throttled:                              0.
Pages wired down:                        141234.
Pages purgeable:                           5120.
"Translation faults":                 987654321.
Pages copy-on-write:                   12345678.
Pages stored in compressor:              412345.
Pages occupied by compressor:            101234.
"""


@pytest.fixture
def write(tmp_path):
    """``write("sys/memory.max", "1000")``: a file below the test's folder."""

    def put(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return put


def _rooms(tmp_path):
    return sorted(live_memory._cgroup_rooms(tmp_path / "proc", tmp_path / "sys"))


def _v2(write, folder, limit):
    write(f"{folder}/memory.max", f"{limit}\n")
    write(f"{folder}/memory.current", "700\n")
    write(f"{folder}/memory.stat", "anon 500\ninactive_file 150\n")


def test_meminfo_counts_what_can_be_given_back(tmp_path, write):
    assert live_memory._meminfo_available(tmp_path) is None
    write("meminfo", "MemTotal:  16000 kB\nMemFree:  100 kB\nMemAvailable:   8000 kB\n")
    assert live_memory._meminfo_available(tmp_path) == 8000 * 1024


def test_a_containers_limit_counts(tmp_path, write):
    write("proc/self/cgroup", "0::/\n")
    assert not _rooms(tmp_path)
    _v2(write, "sys", "max")
    assert not _rooms(tmp_path)
    _v2(write, "sys", 1000)
    assert _rooms(tmp_path) == [450]


def test_a_parents_limit_counts_too(tmp_path, write):
    write("proc/self/cgroup", "0::/user.slice/app.scope\n")
    _v2(write, "sys/user.slice", 2000)
    _v2(write, "sys/user.slice/app.scope", 5000)
    assert _rooms(tmp_path) == [1450, 4450]


def test_the_older_cgroups_have_other_names(tmp_path, write):
    write("proc/self/cgroup", "9:name=systemd:/\n4:memory:/box/inner\n0::/\n")

    def limit(folder, value):
        write(f"{folder}/memory.limit_in_bytes", f"{value}\n")
        write(f"{folder}/memory.usage_in_bytes", "700\n")
        write(f"{folder}/memory.stat", "inactive_file 9\ntotal_inactive_file 150\n")

    # No limit is written as the largest multiple of a page.
    limit("sys/memory", 9223372036854771712)
    assert not _rooms(tmp_path)
    limit("sys/memory/box", 3000)
    assert _rooms(tmp_path) == [2450]


def test_inside_a_container_the_mount_is_the_group_itself(tmp_path, write):
    write("proc/self/cgroup", "4:memory:/docker/0123abcd\n")
    write("sys/memory/memory.limit_in_bytes", "1000\n")
    write("sys/memory/memory.usage_in_bytes", "1200\n")
    write("sys/memory/memory.stat", "total_inactive_file 50\n")
    # Over its limit already: nothing is left, and that is no negative number.
    assert _rooms(tmp_path) == [0]


def test_vm_stat_counts_what_macos_gives_back_on_demand():
    pages = 32543 + 350012 + 21345 + 5120
    assert live_memory.parse_vm_stat(VM_STAT) == pages * 16384


@pytest.mark.parametrize("text", ["", "vm_stat: not found", VM_STAT.replace("Pages free", "Fine")])
def test_other_words_than_vm_stats_are_no_number(text):
    assert live_memory.parse_vm_stat(text) is None


@pytest.mark.skipif(sys.platform != "darwin", reason="macOS only: runs vm_stat")
def test_this_mac_answers():
    said = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, check=True)
    assert live_memory.parse_vm_stat(said.stdout) > 1 << 20


def test_this_machine_says_what_is_free():
    free = live_memory.available_memory()
    assert free is None or free > 1 << 20
