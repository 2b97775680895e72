"""``tdx``: Intel's module vouches for a guest. The measured log is extended into RTMR3, and a quote
over the node's keys carries the registers.

Intel's documents about the platform's TCB age: they lie in a folder, are read for each piece of
evidence, and are renewed there by whoever runs the node.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final, Protocol

from overspill.errors import ConfigurationError, EvidenceRejected
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import PRODUCTION, report_data
from overspill.trust.tdx import TYPE
from overspill.trust.tdx_quote import Quote, parse_quote
from overspill.types.evidence import Assurance, Evidence
from overspill_cloud.attester.tsm import TsmReport, TsmReports

PROVIDER: Final = "tdx_guest"
COLLATERAL_FOLDER: Final = "tdx"
RTMR3: Final = Path("/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384")
"""Linux 6.16 on (ABI/testing/sysfs-devices-virtual-misc-tdx_guest): reading gives the register,
writing 48 bytes extends it."""
COLLATERAL_FILES: Final = {
    "tcb_info": "tcb_info.json",
    "qe_identity": "qe_identity.json",
    "root_crl": "root_ca.crl",
    "pck_crl": "pck.crl",
}
_SIGNING_CHAIN: Final = "tcb_signing_chain.pem"
_REGISTER_BYTES: Final = 48


class Register(Protocol):
    """A measurement register that software may extend. Raises ``OSError`` as the kernel does."""

    def read(self) -> bytes:
        """Its value, 48 bytes."""

    def extend(self, digest: bytes) -> None:
        """Replaces its value by SHA-384(value || digest)."""


class KernelRegister:
    """A register as a file of the kernel's."""

    def __init__(self, path: Path = RTMR3) -> None:
        self._path = path

    def read(self) -> bytes:
        """See :class:`Register`."""
        return self._path.read_bytes()

    def extend(self, digest: bytes) -> None:
        """See :class:`Register`."""
        descriptor = os.open(self._path, os.O_WRONLY)
        try:
            os.write(descriptor, digest)
        finally:
            os.close(descriptor)


class TdxAttester:
    """Extends RTMR3 once, then asks the kernel for one quote a bundle. ``folder`` holds Intel's
    documents under the names of :data:`COLLATERAL_FILES`."""

    evidence_type = TYPE
    mode = PRODUCTION
    assurance = Assurance.HARDWARE_TEE

    def __init__(self, reports: TsmReports, folder: Path, register: Register | None = None) -> None:
        if reports.provider != PROVIDER:
            raise ConfigurationError(
                f"This machine's reports come from {reports.provider}, not from a TDX guest.",
                mend="Use another --attester, or none: the node then takes what the machine has.",
            )
        self._reports = reports
        self._folder = folder
        self._register = register or KernelRegister()
        self._one_at_a_time = threading.Lock()
        self._measured: tuple[bytes, ...] | None = None

    def evidence(
        self, nkc_bytes: bytes, nonce: bytes | None, measured_log: tuple[bytes, ...]
    ) -> Evidence:
        """See :class:`~overspill_cloud.attester.base.Attester`. The first call measures.

        Raises ``ConfigurationError`` when something else was measured before.
        """
        data = report_data(nkc_bytes, nonce, dev=False)
        collateral = self._collateral()
        with self._one_at_a_time:
            self._measure(measured_log)
            made = self._reports.report(data)
        quote = _parsed(made)
        if quote.report.report_data != data:
            raise ConfigurationError(
                "The kernel gave a quote over other data.", mend="Make sure nothing else asks."
            )
        # The quoting service fills a buffer of fixed size; clients take the quote alone.
        exact = made.outblob[: len(made.outblob) - len(quote.trailing)]
        return Evidence(TYPE, exact, collateral)

    def quote(self) -> Quote:
        """A quote over nothing, for who writes a policy for this machine."""
        with self._one_at_a_time:
            return _parsed(self._reports.report(bytes(64)))

    def close(self) -> None:
        """Gives the kernel's folder back."""
        self._reports.close()

    def _measure(self, measured_log: tuple[bytes, ...]) -> None:
        """Extends the register with the log, once. It only ever goes forward."""
        if self._measured == measured_log:
            return
        log = MeasuredLog.decode(measured_log)
        expected = log.replay_rtmr()
        try:
            found = self._register.read()
            if found != expected:  # else it was this very log, before the node was started again
                if found != bytes(_REGISTER_BYTES):
                    raise ConfigurationError(
                        "RTMR3 holds other measurements already.",
                        mend="Start the guest anew, and nothing else that extends RTMR3 in it.",
                    )
                for digest in log.rtmr_extensions():
                    self._register.extend(digest)
                found = self._register.read()
        except OSError as error:
            raise ConfigurationError(
                f"RTMR3 cannot be extended ({error.strerror}).",
                mend=f"Use Linux 6.16 or newer, as a user who may write {RTMR3}.",
            ) from error
        if found != expected:
            raise ConfigurationError(
                "RTMR3 does not hold what was measured.",
                mend="Make sure that nothing else extends it.",
            )
        self._measured = measured_log

    def _collateral(self) -> dict[str, bytes]:
        try:
            found = {
                name: (self._folder / file).read_bytes() for name, file in COLLATERAL_FILES.items()
            }
            chain = self._folder / _SIGNING_CHAIN
            return found | ({"tcb_signing_chain": chain.read_bytes()} if chain.exists() else {})
        except OSError as error:
            raise ConfigurationError(
                f"{error.filename} cannot be read: {error.strerror}.",
                mend="Put Intel's TCB info, QE identity and both CRLs there, as its service (or a "
                "PCCS) gives them.",
            ) from error


def _parsed(made: TsmReport) -> Quote:
    try:
        quote = parse_quote(made.outblob)
    except EvidenceRejected as error:
        raise ConfigurationError(
            f"What the kernel gave is no quote that clients read ({error.reason}): expected "
            f"{error.expected}, found {error.actual}.",
            mend="Update overspill, or the host's quoting service.",
        ) from error
    if any(quote.trailing):
        raise ConfigurationError("Something follows the quote that the kernel gave.")
    return quote
