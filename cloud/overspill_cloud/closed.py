"""A closed node: what could look into it from outside is shut, or a node on hardware refuses to
serve, naming each open thing and its mend.

What counts is the whole machine, not this process: the engine runs in a process of its own, root
can undo what a process does for itself, and a swapped page outlives both. Development and pinned
nodes start anyway and state the rest (:mod:`overspill_cloud.hardening`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from overspill.errors import ConfigurationError
from overspill.trust.closed import CLOSED_AT_START, SECURE_BOOT
from overspill_cloud.machine import Machine

_NO_DUMP: Final = ("", "|/bin/false", "|/usr/bin/false", "|/bin/true", "|/usr/bin/true")
_SCREEN: Final = re.compile(r"tty\d+|null")
_CONSOLE: Final = re.compile(r"console=([^,\s]*)")
_DEBUGGER: Final = re.compile(
    r"\b(?:kgdboc|kgdbwait|kgdbdbgp|kgdbcon|ekgdboc|gdb|earlyprintk|earlycon)\b"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: ``found`` says what is open, and "" that nothing is."""

    name: str
    found: str
    mend: str

    @property
    def is_closed(self) -> bool:
        """Whether there is nothing to mend."""
        return not self.found


def look(machine: Machine, open_ports: Collection[int] = ()) -> tuple[Finding, ...]:
    """Everything in :data:`~overspill.trust.closed.CLOSABLE`, as this machine has it.
    ``open_ports`` are meant to be open, beside the node's own."""
    found = [Finding(name, check(machine), MENDS[name]) for name, check in _CHECKS.items()]
    stray = sorted(set(machine.open_ports()) - set(open_ports))
    ports = f"port {', '.join(map(str, stray))} is open to other machines" if stray else ""
    found.append(Finding("open_ports", _told(machine) or ports, MENDS["open_ports"]))
    said = {True: "", False: "secure boot is off", None: "nothing says that secure boot is on"}
    found.append(Finding(SECURE_BOOT, said[machine.secure_boot], MENDS[SECURE_BOOT]))
    return tuple(sorted(found, key=lambda finding: finding.name))


def close_or_refuse(machine: Machine, open_ports: Collection[int] = ()) -> tuple[str, ...]:
    """The names of what is closed, for the node's settings.

    Raises ``ConfigurationError`` naming each thing that is open, with its mend. Secure boot that
    nobody speaks of is left out and not refused: there the launch measurement names the kernel.
    """
    findings = look(machine, open_ports)
    speaks = machine.secure_boot is not None
    demanded = (*CLOSED_AT_START, *([SECURE_BOOT] if speaks else []))
    bad = [one for one in findings if not one.is_closed and one.name in demanded]
    if bad:
        raise ConfigurationError(
            "A node on hardware does not serve while it can be looked into: "
            + "; ".join(f"{one.name}: {one.found}" for one in bad)
            + ".",
            mend=" ".join(f"({one.name}) {one.mend}" for one in bad),
        )
    return tuple(one.name for one in findings if one.is_closed)


def _told(machine: Machine) -> str:
    return "" if machine.tells else "this machine does not tell"


def _core_dumps(machine: Machine) -> str:
    """A pattern that is a file obeys the limit of zero, which engine processes inherit; one that
    is a pipe does not."""
    pattern = machine.text("proc/sys/kernel/core_pattern")
    if pattern is None:
        return "this machine does not tell"
    is_kept = pattern.startswith("|") and pattern not in _NO_DUMP
    return f"core dumps go to {pattern}" if is_kept else ""


def _ptrace(machine: Machine) -> str:
    scope = machine.text("proc/sys/kernel/yama/ptrace_scope")
    return "" if scope == "3" else f"ptrace_scope is {scope or 'absent'}"


def _swap(machine: Machine) -> str:
    swaps = machine.text("proc/swaps")
    if swaps is None:
        return "this machine does not tell"
    areas = [line.split()[0] for line in swaps.splitlines()[1:] if line.strip()]
    return f"swap is on ({', '.join(areas)})" if areas else ""


def _debug_console(machine: Machine) -> str:
    command_line = machine.text("proc/cmdline")
    if command_line is None:
        return "this machine does not tell"
    active = (machine.text("sys/class/tty/console/active") or "").split()
    consoles = {*active, *_CONSOLE.findall(command_line)} - {""}
    kgdb = machine.text("sys/module/kgdboc/parameters/kgdboc")
    sysrq = machine.text("proc/sys/kernel/sysrq")
    found = [f"console {name}" for name in sorted(consoles) if not _SCREEN.fullmatch(name)]
    found += [f"kernel option {name}" for name in sorted(set(_DEBUGGER.findall(command_line)))]
    found += [f"kgdb on {kgdb}"] if kgdb else []
    found += [f"sysrq {sysrq}"] if sysrq not in (None, "0") else []
    return ", ".join(found)


def _kexec(machine: Machine) -> str:
    if not machine.tells:
        return "this machine does not tell"
    disabled = machine.text("proc/sys/kernel/kexec_load_disabled")
    # Without the file the kernel was built without kexec.
    return "" if disabled in (None, "1") or machine.locked_down else "another kernel may be loaded"


def _modules(machine: Machine) -> str:
    if not machine.tells:
        return "this machine does not tell"
    enforced = machine.text("sys/module/module/parameters/sig_enforce") in ("Y", "1")
    disabled = machine.text("proc/sys/kernel/modules_disabled") == "1"
    is_shut = enforced or disabled or machine.locked_down or machine.text("proc/modules") is None
    return "" if is_shut else "unsigned modules may be loaded"


_CHECKS: Final[Mapping[str, Callable[[Machine], str]]] = MappingProxyType(
    {
        "core_dumps": _core_dumps,
        "ptrace": _ptrace,
        "swap": _swap,
        "debug_console": _debug_console,
        "kexec": _kexec,
        "modules": _modules,
    }
)
MENDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "core_dumps": "sysctl -w kernel.core_pattern='|/bin/false'",
        "ptrace": "sysctl -w kernel.yama.ptrace_scope=3",
        "swap": "swapoff -a, and no swap in /etc/fstab",
        "debug_console": "Boot without serial consoles and kernel debuggers; sysctl -w "
        "kernel.sysrq=0",
        "kexec": "sysctl -w kernel.kexec_load_disabled=1",
        "modules": "Boot with module.sig_enforce=1 or lockdown=integrity, or sysctl -w "
        "kernel.modules_disabled=1 once all are loaded",
        "open_ports": "Stop what listens there, or name a port that is meant with --open-port",
        SECURE_BOOT: "Turn secure boot on in the firmware",
    }
)
