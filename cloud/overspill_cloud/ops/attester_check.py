"""What `overspill-cloud doctor` says of what vouches for a node; no key is made, no TPM started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from overspill.trust.snp import TYPE as SEV_SNP
from overspill.trust.tdx import TYPE as TDX
from overspill.types.evidence import Assurance
from overspill_cloud.app import ModelSpec, check_upstreams
from overspill_cloud.attester import DEV_KEY_FILE, HARDWARE_TPM, choose_attester
from overspill_cloud.attester.base import Attester
from overspill_cloud.attester.keyfile import load_key
from overspill_cloud.closed import close_or_refuse
from overspill_cloud.machine import Machine

_HARDWARE: Final = frozenset({SEV_SNP, TDX, HARDWARE_TPM})
Opener = Callable[[str, Path], Attester]


def look_at_attester(kind: str, state: Path, opener: Opener) -> str:
    """Which it is, opened where that makes nothing. Raises ``UsageError``, ``ConfigurationError``
    or ``MissingExtra``, as opening it at a start would."""
    kind = choose_attester(kind, state)
    name, _, tcti = kind.partition(":")
    if kind == "dev":
        key = state / DEV_KEY_FILE
        if key.exists():
            load_key(key)
            return "dev"
        return "dev, with a key that is made at the first start"
    if name == "tpm" and not tcti:
        from overspill_cloud.attester.swtpm import program
        from overspill_cloud.attester.tpm import SWTPM_FOLDER  # refused here without its extra

        return f"tpm, by {program()} over {state / SWTPM_FOLDER}"
    opener(kind, state).close()
    return kind


def is_on_hardware(kind: str, state: Path) -> bool:
    """Whether its evidence would be of hardware, which wants a closed machine."""
    return choose_attester(kind, state).partition(":")[0] in _HARDWARE


def look_at_closed(machine: Machine, open_ports: tuple[int, ...]) -> str:
    """What is closed. Raises ``ConfigurationError`` with everything that a node on hardware does
    not serve beside."""
    return ", ".join(close_or_refuse(machine, open_ports))


def look_at_unnamed(models: tuple[ModelSpec, ...]) -> str:
    """Raises ``ConfigurationError`` for an upstream whose weights evidence cannot name."""
    check_upstreams(Assurance.HARDWARE_TPM, models)
    return "every model's weights are named"
