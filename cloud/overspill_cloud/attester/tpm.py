"""``dev-tpm-software``: a software TPM measures and quotes what runs here. For development only.

The flow is the one of hardware: EK, AK, activation, registers extended with the measured log, a
quote for each bundle and challenge. Only the ground that it stands on is sand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from overspill.errors import ConfigurationError
from overspill.trust.measured import MeasuredLog
from overspill.trust.nkc import DEV, NO_NONCE, qualifying_data
from overspill.trust.tpm import EK_CERTIFICATE, TYPE, TpmEvidence
from overspill.types.evidence import Assurance, Evidence
from overspill_cloud.attester.swtpm import SwtpmProcess
from overspill_cloud.attester.tpm_authority import UnsafeDevAuthority
from overspill_cloud.attester.tpm_device import Tpm, open_tcti

AUTHORITY_KEY_FILE = "tpm-authority.key"
AUTHORITY_FILE = "tpm-authority.pem"
SWTPM_FOLDER = "swtpm"


def open_tpm(state: Path, tcti: str = "") -> UnsafeSoftwareTpmAttester:
    """The attester over the TPM that ``tcti`` names, or over a software TPM of the node's own.

    What a policy has to name lies in ``state`` as ``tpm-authority.pem``. Raises
    ``ConfigurationError`` or ``MissingExtra``.
    """
    authority = UnsafeDevAuthority.from_files(state / AUTHORITY_KEY_FILE, state / AUTHORITY_FILE)
    if tcti:
        return UnsafeSoftwareTpmAttester(Tpm(open_tcti(tcti)), authority)
    with ExitStack() as stack:
        process = SwtpmProcess(state / SWTPM_FOLDER)
        stack.callback(process.close)
        attester = UnsafeSoftwareTpmAttester(Tpm(process.tcti), authority, process.close)
        stack.pop_all()
    return attester


class UnsafeSoftwareTpmAttester:
    """Quotes of one TPM under a development authority."""

    evidence_type = TYPE
    mode = DEV
    assurance = Assurance.NONE

    def __init__(
        self,
        tpm: Tpm,
        authority: UnsafeDevAuthority,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._tpm = tpm
        self._on_close = on_close
        self._one_at_a_time = threading.Lock()
        self._measured: tuple[bytes, ...] | None = None
        ek = tpm.endorsement_key()
        self._ak = tpm.attestation_key()
        self._ek_certificate = authority.certify(ek)
        self._activation = authority.activate(tpm, ek, self._ek_certificate, self._ak)
        tpm.forget(ek)
        self.root_pem = authority.root.public_bytes(Encoding.PEM).decode("ascii")
        """What a policy has to name in ``[dev-tpm-software] ek_roots``."""

    def evidence(
        self, nkc_bytes: bytes, nonce: bytes | None, measured_log: tuple[bytes, ...]
    ) -> Evidence:
        """See :class:`~overspill_cloud.attester.base.Attester`. The first call measures.

        Raises ``ConfigurationError`` when something else was measured before.
        """
        data = qualifying_data(nkc_bytes, nonce, dev=True)
        with self._one_at_a_time:
            registers = self._measure(measured_log)
            quote, signature = self._tpm.quote(self._ak, registers, data)
        parts = TpmEvidence(
            nonce=nonce or NO_NONCE,
            ak_public=self._ak.public_bytes,
            quote=quote,
            signature=signature,
            activation=self._activation,
        )
        return Evidence(TYPE, parts.encode(), {EK_CERTIFICATE: self._ek_certificate})

    def close(self) -> None:
        """Lets go of the TPM, and ends it where it is the node's own."""
        try:
            self._tpm.forget(self._ak)
            self._tpm.close()
        finally:
            self._on_close()

    def _measure(self, measured_log: tuple[bytes, ...]) -> list[int]:
        """Extends the registers with the log, once. They only ever go forward."""
        expected = MeasuredLog.decode(measured_log).replay()
        if self._measured != measured_log:
            self._extend(measured_log, expected)
            self._measured = measured_log
        return sorted(expected)

    def _extend(self, measured_log: tuple[bytes, ...], expected: dict[int, bytes]) -> None:
        before = self._tpm.registers(expected)
        if before == expected:  # this very log, by an earlier run on the same TPM
            return
        if any(any(value) for value in before.values()):
            raise ConfigurationError(
                f"The TPM's registers {sorted(expected)} hold other measurements already.",
                mend="Reset the TPM (restart the machine, or the software TPM) and start again.",
            )
        for pcr, digest in MeasuredLog.decode(measured_log).extensions():
            self._tpm.extend(pcr, digest)
        if self._tpm.registers(expected) != expected:
            raise ConfigurationError(
                "The TPM's registers do not hold what was measured.",
                mend="Make sure that nothing else extends them.",
            )
