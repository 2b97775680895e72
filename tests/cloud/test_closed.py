"""A closed node: each way to look into it from outside is found, named, and mended by name."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from overspill.errors import ConfigurationError
from overspill.trust.closed import CLOSABLE, CLOSED_AT_START
from overspill_cloud.closed import MENDS, close_or_refuse, look
from overspill_cloud.machine import Machine

CLOSED = {
    "proc/sys/kernel/osrelease": "6.16.0\n",
    "proc/sys/kernel/core_pattern": "|/bin/false\n",
    "proc/sys/kernel/yama/ptrace_scope": "3\n",
    "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n",
    "proc/cmdline": "root=/dev/vda1 ro console=tty0 quiet\n",
    "sys/class/tty/console/active": "tty0\n",
    "proc/sys/kernel/sysrq": "0\n",
    "proc/sys/kernel/kexec_load_disabled": "1\n",
    "proc/modules": "ext4 1 1 - Live 0x0\n",
    "sys/module/module/parameters/sig_enforce": "Y\n",
    "proc/net/tcp": "  sl  local_address rem_address   st\n"
    "   0: 0100007F:1F90 00000000:0000 0A 0 0 0\n"
    "   1: 0A00020F:0016 0A000202:D431 01 0 0 0\n",
    "proc/net/tcp6": "  sl  local_address\n"
    "   0: 00000000000000000000000001000000:1F91 0 0A 0\n"
    "   1: 0000000000000000FFFF00000100007F:1F92 0 0A 0\n",
}
EFI = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@pytest.fixture
def machine(tmp_path: Path):
    """``machine({"proc/swaps": "..."})``: a closed machine but for this; None takes a file away."""

    def make(changes: dict[str, str | bytes | None] | None = None) -> Machine:
        root = tmp_path / "root"
        shutil.rmtree(root, ignore_errors=True)
        for path, text in {**CLOSED, **(changes or {})}.items():
            if text is None:
                continue
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(text if isinstance(text, bytes) else text.encode())
        return Machine(root)

    return make


OPEN = [
    ("core_dumps", {"proc/sys/kernel/core_pattern": "|/usr/lib/systemd/systemd-coredump %P\n"}),
    ("core_dumps", {"proc/sys/kernel/core_pattern": None}),
    ("ptrace", {"proc/sys/kernel/yama/ptrace_scope": "0\n"}),
    ("ptrace", {"proc/sys/kernel/yama/ptrace_scope": "2\n"}),
    ("ptrace", {"proc/sys/kernel/yama/ptrace_scope": None}),
    ("swap", {"proc/swaps": CLOSED["proc/swaps"] + "/dev/sda2 partition 8 0 -2\n"}),
    ("swap", {"proc/swaps": None}),
    ("debug_console", {"proc/cmdline": "ro console=ttyS0,115200\n"}),
    ("debug_console", {"proc/cmdline": "ro console=tty0 console=hvc0\n"}),
    ("debug_console", {"sys/class/tty/console/active": "tty0 ttyS0\n"}),
    ("debug_console", {"proc/cmdline": "ro kgdboc=kbd\n"}),
    ("debug_console", {"proc/cmdline": "ro earlyprintk=serial\n"}),
    ("debug_console", {"sys/module/kgdboc/parameters/kgdboc": "ttyS1\n"}),
    ("debug_console", {"proc/sys/kernel/sysrq": "176\n"}),
    ("debug_console", {"proc/cmdline": None}),
    ("kexec", {"proc/sys/kernel/kexec_load_disabled": "0\n"}),
    ("modules", {"sys/module/module/parameters/sig_enforce": "N\n"}),
    ("open_ports", {"proc/net/tcp": "head\n   0: 00000000:0016 00000000:0000 0A 0\n"}),
    ("open_ports", {"proc/net/tcp6": f"head\n   0: {'0' * 32}:0016 {'0' * 32}:0000 0A 0\n"}),
    ("secure_boot", {EFI: b"\x06\0\0\0\0"}),
]


@pytest.mark.parametrize(("name", "changes"), OPEN)
def test_each_open_thing_is_refused_by_name_with_its_mend(machine, name, changes):
    with pytest.raises(ConfigurationError) as caught:
        close_or_refuse(machine(changes))
    assert f"{name}: " in caught.value.message
    assert MENDS[name] in caught.value.mend
    others = set(CLOSABLE) - {name}
    assert not [other for other in others if f"{other}: " in caught.value.message]


def test_all_that_is_open_is_named_at_once(machine):
    changes = {"proc/swaps": None, "proc/sys/kernel/yama/ptrace_scope": "1\n"}
    with pytest.raises(ConfigurationError) as caught:
        close_or_refuse(machine(changes))
    assert "swap: " in caught.value.message
    assert "ptrace: ptrace_scope is 1" in caught.value.message


def test_a_closed_machine_says_what_is_closed(machine):
    assert close_or_refuse(machine()) == tuple(sorted(CLOSED_AT_START))


def test_secure_boot_counts_where_the_firmware_speaks_of_it(machine):
    assert close_or_refuse(machine({EFI: b"\x06\0\0\0\x01"})) == tuple(sorted(CLOSABLE))


@pytest.mark.parametrize(
    "changes",
    [
        {"sys/module/module/parameters/sig_enforce": None, "proc/modules": None},
        {
            "sys/module/module/parameters/sig_enforce": "N\n",
            "proc/sys/kernel/modules_disabled": "1\n",
        },
        {
            "sys/module/module/parameters/sig_enforce": "N\n",
            "proc/sys/kernel/kexec_load_disabled": "0\n",
            "sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
        },
        {"proc/sys/kernel/kexec_load_disabled": None},
        {"proc/sys/kernel/core_pattern": "core\n"},
    ],
)
def test_there_is_more_than_one_way_to_close_a_thing(machine, changes):
    assert close_or_refuse(machine(changes)) == tuple(sorted(CLOSED_AT_START))


def test_a_lockdown_that_is_off_closes_nothing(machine):
    changes = {
        "sys/module/module/parameters/sig_enforce": "N\n",
        "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
    }
    with pytest.raises(ConfigurationError, match="modules: "):
        close_or_refuse(machine(changes))


def test_a_port_may_be_meant(machine):
    changes = {"proc/net/tcp": "head\n   0: 00000000:23F0 00000000:0000 0A 0\n"}
    assert "open_ports" in close_or_refuse(machine(changes), (9200,))


def test_a_machine_that_tells_nothing_is_open(tmp_path):
    findings = {one.name: one for one in look(Machine(tmp_path))}
    assert set(findings) == set(CLOSABLE)
    assert not [name for name, one in findings.items() if one.is_closed]


def tcg_log(*events: bytes, bank: int = 0x0B, size: int = 32) -> bytes:
    spec = b"Spec ID Event03\0" + bytes(8) + struct.pack("<IHHB", 1, bank, size, 0)
    return struct.pack("<II20sI", 0, 3, bytes(20), len(spec)) + spec + b"".join(events)


def test_the_firmwares_log_counts_before_its_variable(machine):
    """A log without a word of secure boot, or one that cannot be read, is a log that says no."""
    log = "sys/kernel/security/tpm0/binary_bios_measurements"
    for data in (tcg_log(), b"\0" * 40):
        with pytest.raises(ConfigurationError, match="secure boot is off"):
            close_or_refuse(machine({EFI: b"\x06\0\0\0\x01", log: data}))


def test_the_command_shows_each_thing_with_its_mend(cloud):
    done = subprocess.run(cloud.command("closed", "--json"), capture_output=True, check=False)
    told = json.loads(done.stdout)
    assert {one["name"] for one in told["findings"]} == set(CLOSABLE)
    assert all(one["closed"] or (one["found"] and one["mend"]) for one in told["findings"])
    open_ones = {one["name"] for one in told["findings"] if not one["closed"]}
    assert told["ready"] is not bool(open_ones & set(CLOSED_AT_START))
    assert done.returncode == (0 if told["ready"] else 4)
