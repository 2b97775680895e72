"""The files in which Linux says how open a machine is, under a root that tests can make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from overspill.errors import EvidenceRejected
from overspill.trust.ccel import parse_ccel
from overspill.trust.event_log import parse_event_log

_TPM_LOG: Final = "sys/kernel/security/tpm0/binary_bios_measurements"
_TDX_LOG: Final = "sys/firmware/acpi/tables/data/CCEL"
_EFI_VARIABLE: Final = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_LISTENING: Final = "0A"


class Machine:
    """Reads what the kernel tells; what it does not tell is None."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def text(self, path: str) -> str | None:
        """A file's text without the spaces around it; None where it is not there or not ours."""
        data = self.data(path)
        return None if data is None else data.decode("utf-8", "replace").strip()

    def data(self, path: str) -> bytes | None:
        """A file's bytes; None where it is not there or not ours."""
        try:
            return (self._root / path).read_bytes()
        except OSError:
            return None

    @property
    def tells(self) -> bool:
        """Whether there is a kernel here that tells anything at all."""
        return self.text("proc/sys/kernel/osrelease") is not None

    @property
    def locked_down(self) -> bool:
        """Whether the kernel's lockdown is on: no unsigned modules, no unsigned kexec."""
        text = self.text("sys/kernel/security/lockdown") or ""
        return "[integrity]" in text or "[confidentiality]" in text

    @property
    def secure_boot(self) -> bool | None:
        """What the firmware measured, else what its variable says; None where it says nothing.

        A log that is there and cannot be read counts as off.
        """
        for path, parse in ((_TDX_LOG, parse_ccel), (_TPM_LOG, parse_event_log)):
            data = self.data(path)
            if data:
                try:
                    return bool(parse(data).secure_boot)
                except EvidenceRejected:
                    return False
        variable = self.data(_EFI_VARIABLE)
        return None if variable is None else variable[4:] == b"\x01"

    def open_ports(self) -> Iterator[int]:
        """TCP ports on which something listens for other machines."""
        for path, loopback in (
            ("proc/net/tcp", _is_loopback_v4),
            ("proc/net/tcp6", _is_loopback_v6),
        ):
            for line in (self.text(path) or "").splitlines()[1:]:
                fields = line.split()
                if len(fields) > 3 and fields[3] == _LISTENING:
                    address, _, port = fields[1].partition(":")
                    if not loopback(address):
                        yield int(port, 16)


def _is_loopback_v4(address: str) -> bool:
    return address.endswith("7F")  # 127.0.0.0/8, least byte first


def _is_loopback_v6(address: str) -> bool:
    mapped = address.startswith("0000000000000000FFFF0000") and _is_loopback_v4(address[24:])
    return mapped or address == "00000000000000000000000001000000"
