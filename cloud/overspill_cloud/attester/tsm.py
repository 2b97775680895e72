"""The kernel's report interface of trusted execution environments, configfs-tsm (Linux 6.7 on):
Documentation/ABI/testing/configfs-tsm-report, drivers/virt/coco/tsm.c.

A report is asked for in a folder under ``/sys/kernel/config/tsm/report``: what is to be signed is
written to ``inblob``, the report is read from ``outblob``, what goes with it from ``auxblob``. Each
write moves ``generation`` on by one. That number is the only sign of a write that failed (the file
is flushed when it is closed, and nobody hears of that) and of another process in the same folder:
a report counts only when the number is the expected one before and after it was read.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from overspill.errors import ConfigurationError

REPORTS: Final = Path("/sys/kernel/config/tsm/report")
MAX_INBLOB_BYTES: Final = 64
MAX_ATTEMPTS: Final = 6
_PAUSE_S: Final = 0.02
_AGAIN: Final = frozenset({errno.EBUSY, errno.EINTR, errno.EAGAIN, errno.ETXTBSY})
"""Another writer or reader, or a signal: the same steps may work in a moment."""


class TsmFiles(Protocol):
    """The interface's files, by the folder's and the attribute's name. Raises ``OSError`` as the
    kernel does. ``overspill_cloud.testing.FakeTsm`` is the kernel's stand-in for tests."""

    def make(self, name: str) -> None:
        """Makes a folder, and with it its attributes."""

    def remove(self, name: str) -> None:
        """Removes a folder."""

    def has(self, name: str, attribute: str) -> bool:
        """Whether this provider has the attribute."""

    def read(self, name: str, attribute: str) -> bytes:
        """The attribute's whole content."""

    def write(self, name: str, attribute: str, data: bytes) -> None:
        """Writes the attribute in one piece."""


class KernelTsmFiles:
    """The files as the kernel has them under ``root``."""

    def __init__(self, root: Path = REPORTS) -> None:
        self._root = root

    def make(self, name: str) -> None:
        """See :class:`TsmFiles`."""
        (self._root / name).mkdir(mode=0o700)

    def remove(self, name: str) -> None:
        """See :class:`TsmFiles`."""
        (self._root / name).rmdir()

    def has(self, name: str, attribute: str) -> bool:
        """See :class:`TsmFiles`."""
        return (self._root / name / attribute).exists()

    def read(self, name: str, attribute: str) -> bytes:
        """See :class:`TsmFiles`."""
        return (self._root / name / attribute).read_bytes()

    def write(self, name: str, attribute: str, data: bytes) -> None:
        """See :class:`TsmFiles`."""
        # One write call, and no truncation, which configfs does not know.
        descriptor = os.open(self._root / name / attribute, os.O_WRONLY)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class TsmReport:
    """One report: who made it (``sev_guest``, ``tdx_guest``), its bytes, and what goes with it."""

    provider: str
    outblob: bytes
    auxblob: bytes


class _Disturbed(Exception):
    """The folder is not in the state that our own writes lead to."""


class TsmReports:
    """A folder of this process's own, from which it asks for one report at a time.

    Raises ``ConfigurationError`` where the machine has no provider or this user may not ask.
    ``sleep`` waits between attempts.
    """

    def __init__(
        self, files: TsmFiles | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._files = files or KernelTsmFiles()
        self._sleep = sleep
        self._name = f"overspill-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self._files.make(self._name)
            self.provider = self._text("provider")
        except OSError as error:
            self.close()
            raise _no_provider(error) from error

    def report(self, inblob: bytes, *, lowest_privilege: int = 0) -> TsmReport:
        """A report over ``inblob`` (1 to 64 bytes) at VMPL ``lowest_privilege``, where the provider
        knows privilege levels.

        Raises ``ConfigurationError`` when the machine gives none, or other writers do not stop.
        """
        if not 0 < len(inblob) <= MAX_INBLOB_BYTES:
            raise ConfigurationError(f"A report is over 1 to {MAX_INBLOB_BYTES} bytes.")
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return self._ask(inblob, lowest_privilege)
            except _Disturbed as error:
                why = str(error)
            except OSError as error:
                if error.errno not in _AGAIN:
                    raise _no_report(self.provider, error) from error
                why = os.strerror(error.errno or 0)
            self._settle()
            self._sleep(_PAUSE_S * attempt)
        raise ConfigurationError(
            f"The kernel gave no report in {MAX_ATTEMPTS} attempts: {why}.",
            mend=f"Make sure that nothing else uses {REPORTS / self._name}, and try again.",
        )

    def close(self) -> None:
        """Removes the folder; safe to call twice."""
        with suppress(OSError):
            self._files.remove(self._name)

    def _ask(self, inblob: bytes, privilege: int) -> TsmReport:
        self._check_privilege(privilege)
        expected = self._generation()
        if self._files.has(self._name, "privlevel"):
            self._files.write(self._name, "privlevel", str(privilege).encode())
            expected += 1
        self._files.write(self._name, "inblob", inblob)
        self._expect(expected + 1)
        outblob = self._files.read(self._name, "outblob")
        auxblob = b""
        if self._files.has(self._name, "auxblob"):
            auxblob = self._files.read(self._name, "auxblob")
        # Again: a write between ours and the read would have made this somebody else's report.
        self._expect(expected + 1)
        return TsmReport(self.provider, outblob, auxblob)

    def _expect(self, generation: int) -> None:
        found = self._generation()
        if found < generation:
            raise _Disturbed("what was written did not arrive")
        if found > generation:
            raise _Disturbed("something else wrote into the same folder")

    def _settle(self) -> None:
        """After too many writes without a read the kernel takes no more (EBUSY) until one reads."""
        with suppress(OSError):
            self._files.read(self._name, "outblob")

    def _check_privilege(self, wanted: int) -> None:
        if not self._files.has(self._name, "privlevel_floor"):
            return
        floor = int(self._text("privlevel_floor"))
        if floor > wanted:
            raise ConfigurationError(
                f"This guest runs at VMPL {floor} under a paravisor; a report at VMPL {wanted} "
                "cannot be had.",
                mend="Boot the image without a paravisor, or use its vTPM.",
            )

    def _generation(self) -> int:
        return int(self._text("generation"))

    def _text(self, attribute: str) -> str:
        return self._files.read(self._name, attribute).decode("ascii").strip()


def provider_here(files: TsmFiles | None = None) -> str | None:
    """Who makes reports on this machine (``sev_guest``, ``tdx_guest`` ...); None where nobody does
    or this user may not ask."""
    try:
        reports = TsmReports(files)
    except ConfigurationError:
        return None
    reports.close()
    return reports.provider


def _no_provider(error: OSError) -> ConfigurationError:
    mends = {
        errno.ENOENT: "Use Linux 6.7 or newer in the guest, with configfs mounted and the module "
        "sev-guest or tdx-guest loaded.",
        errno.ENXIO: "Load the module sev-guest or tdx-guest; outside such a guest use another "
        "--attester.",
        errno.EACCES: f"Start the node as a user who may make folders in {REPORTS}.",
        errno.EPERM: f"Start the node as a user who may make folders in {REPORTS}.",
    }
    code = error.errno or 0
    return ConfigurationError(
        f"This machine gives no attestation reports ({os.strerror(code)}).",
        mend=mends.get(code, mends[errno.ENXIO]),
    )


def _no_report(provider: str, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{provider} gave no report ({os.strerror(error.errno or 0)}).",
        mend="See the kernel's log; the host's side of attestation may be down.",
    )
