"""What a node says is closed: the ways to look into it from outside that it found shut at start.

A node on hardware puts the list into its settings (key ``closed``), which its configuration binds
and its evidence with it, and refuses to serve with any of them open. A policy demands what it
lists under ``closed``. It is the node's program that says so: a policy that wants to know which
program that is lists its launch measurement, its registers, or its release.
"""

from __future__ import annotations

from typing import Final

from overspill.errors import EvidenceRejected
from overspill.trust import json_strict
from overspill.trust.measured import Measured, MeasuredLog

SECURE_BOOT: Final = "secure_boot"
CLOSED_AT_START: Final = (
    "core_dumps",
    "debug_console",
    "kexec",
    "modules",
    "open_ports",
    "ptrace",
    "swap",
)
"""What every node on hardware has closed: it does not start otherwise."""
CLOSABLE: Final = (*CLOSED_AT_START, SECURE_BOOT)
"""All that a policy may demand; where a launch measurement names the kernel, firmware may do
without secure boot, and then nothing says that it was on."""
SETTING: Final = "closed"
_STEP: Final = "6"


def closed_things(log: MeasuredLog) -> tuple[str, ...]:
    """What the measured settings say is closed; nothing where they say nothing, or are no JSON."""
    content = log.entry(Measured.CONFIG).content
    try:
        settings = json_strict.parse(content)
    except (ValueError, RecursionError):
        return ()
    found = settings.get(SETTING) if isinstance(settings, dict) else None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        return ()
    return tuple(sorted(found))


def check_closed(log: MeasuredLog, demanded: frozenset[str]) -> None:
    """Raises ``EvidenceRejected("node_not_closed")`` unless all that is demanded is closed."""
    said = closed_things(log)
    missing = sorted(demanded - set(said))
    if missing:
        raise EvidenceRejected(
            "node_not_closed",
            _STEP,
            expected=f"a node that has closed {', '.join(missing)}",
            actual=f"one that says: {', '.join(said) or 'nothing'}",
            mend="The node's operator closes them, as overspill-cloud closed shows.",
        )
