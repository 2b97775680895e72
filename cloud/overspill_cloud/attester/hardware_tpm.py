"""``tpm``: the machine's own TPM quotes what runs here, behind what its firmware measured.

The attestation key is believed on one of two grounds, whose files an operator puts into the state
folder's ``tpm`` (see ``tpm_activation``):

- ``activation``: an activation key's word that the key lives beside the EK that the TPM's maker
  certified. The EK's certificate comes from the TPM itself, or from ``ek_certificate.der``;
  ``ek_chain.pem`` is what stands between it and the maker's root.
- ``ak_certificate.der`` with ``ak_chain.pem``: who certifies keys of its own machines' TPMs.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from overspill.errors import ConfigurationError, EvidenceRejected
from overspill.trust.event_log import parse_event_log
from overspill.trust.measured import PCR_OF, MeasuredLog
from overspill.trust.nkc import NO_NONCE, PRODUCTION, qualifying_data
from overspill.trust.tpm import TpmEvidence
from overspill.trust.tpm_hardware import EVENT_LOG, HEAD, TYPE
from overspill.types.evidence import Assurance, Evidence
from overspill_cloud.attester.tpm_device import LoadedKey, Tpm, open_tcti

FOLDER: Final = "tpm"
DEFAULT_TCTI: Final = "device:/dev/tpmrm0"
EVENT_LOG_FILE: Final = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
ACTIVATION_FILE: Final = "activation"
_FIRMWARE_PCRS: Final = tuple(range(8))
_DIGEST: Final = bytes(32)


def open_hardware_tpm(state: Path, tcti: str = "") -> HardwareTpmAttester:
    """The attester over the TPM that ``tcti`` names (default: the kernel's resource manager).

    Raises ``ConfigurationError``, with its mend, where the TPM, its firmware's log or the grounds
    for its key are missing; ``MissingExtra``.
    """
    tpm = Tpm(open_tcti(tcti or DEFAULT_TCTI))
    try:
        return HardwareTpmAttester(tpm, state / FOLDER, read_event_log)
    except BaseException:
        tpm.close()
        raise


def read_event_log(path: Path = EVENT_LOG_FILE) -> bytes:
    """The firmware's event log, as the kernel keeps it. Raises ``ConfigurationError``."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"The firmware's event log {path} cannot be read: {error.strerror}.",
            mend="Mount securityfs, boot by UEFI with the TPM on, and let the node read the file.",
        ) from error


class HardwareTpmAttester:
    """Quotes of the machine's TPM over its firmware's registers and the node's own.

    ``event_log`` reads the firmware's log anew for each piece of evidence: it may grow.
    """

    evidence_type = TYPE
    mode = PRODUCTION
    assurance = Assurance.HARDWARE_TPM

    def __init__(self, tpm: Tpm, folder: Path, event_log: Callable[[], bytes]) -> None:
        self._tpm = tpm
        self._event_log = event_log
        self._one_at_a_time = threading.Lock()
        self._measured: tuple[bytes, ...] | None = None
        self._grounds, self._activation = _grounds(tpm, folder)
        self._ak = tpm.attestation_key()

    def evidence(
        self, nkc_bytes: bytes, nonce: bytes | None, measured_log: tuple[bytes, ...]
    ) -> Evidence:
        """See :class:`~overspill_cloud.attester.base.Attester`. The first call measures.

        Raises ``ConfigurationError`` when registers hold what neither log explains.
        """
        data = qualifying_data(nkc_bytes, nonce, dev=False)
        with self._one_at_a_time:
            log = self._event_log()
            if self._measured != measured_log:
                self._measure(log, MeasuredLog.decode(measured_log))
                self._measured = measured_log
            pcrs = {*_FIRMWARE_PCRS, *PCR_OF.values()}
            quote, signature = self._tpm.quote(self._ak, pcrs, data)
        parts = TpmEvidence(
            nonce=nonce or NO_NONCE,
            ak_public=self._ak.public_bytes,
            quote=quote,
            signature=signature,
            activation=self._activation,
        )
        return Evidence(TYPE, parts.encode(HEAD), {**self._grounds, EVENT_LOG: log})

    def close(self) -> None:
        """Lets go of the key and the TPM."""
        try:
            self._tpm.forget(self._ak)
        finally:
            self._tpm.close()

    def _measure(self, event_log: bytes, measured: MeasuredLog) -> None:
        """Extend the node's registers once; they only ever go forward.

        What firmware and boot loader put there is in their log, and stays below ours.
        """
        try:
            replayed = parse_event_log(event_log).replay()
        except EvidenceRejected as error:
            raise ConfigurationError(
                f"The firmware's event log cannot be used: {error.reason}.",
                mend="Let the firmware log in TCG 2 format, with SHA-256 digests.",
            ) from error
        before = {pcr: replayed.get(pcr, _DIGEST) for pcr in set(PCR_OF.values())}
        after = _extended(before, measured)
        found = self._tpm.registers(before)
        if found == after:  # this very log, by an earlier run since the machine started
            return
        if found != before:
            wrong = sorted(pcr for pcr in before if found[pcr] != before[pcr])
            raise ConfigurationError(
                f"The TPM's registers {wrong} hold what neither the firmware's log nor this node "
                "measured.",
                mend="Restart the machine, and let nothing else (systemd's own measuring, another "
                "release of the node) extend them.",
            )
        for pcr, digest in measured.extensions():
            self._tpm.extend(pcr, digest)
        if self._tpm.registers(before) != after:
            raise ConfigurationError(
                "The TPM's registers do not hold what was measured.",
                mend="Make sure that nothing else extends them.",
            )


def endorsement(tpm: Tpm, folder: Path) -> tuple[LoadedKey, bytes]:
    """The EK, and its maker's certificate: the TPM's own, or ``ek_certificate.der``.

    Raises ``ConfigurationError`` where there is none.
    """
    key, certificate = tpm.certified_endorsement_key()
    certificate = read_optional(folder / "ek_certificate.der") or certificate or b""
    if not certificate:
        tpm.forget(key)
        raise ConfigurationError(
            "The TPM holds no certificate of its endorsement key.",
            mend=f"Fetch it from the TPM's maker and put it into {folder}/ek_certificate.der.",
        )
    return key, certificate


def _grounds(tpm: Tpm, folder: Path) -> tuple[Mapping[str, bytes], bytes]:
    """The collateral that vouches for the attestation key, and the activation, if that does."""
    certificate = read_optional(folder / "ak_certificate.der")
    if certificate is not None:
        chain = read_optional(folder / "ak_chain.pem") or b""
        return {"ak_certificate": certificate, "ak_chain": chain}, b""
    activation = read_optional(folder / ACTIVATION_FILE)
    if activation is None:
        raise ConfigurationError(
            f"Nothing vouches for the TPM's attestation key: {folder} holds neither "
            f"'{ACTIVATION_FILE}' nor 'ak_certificate.der'.",
            mend="Have the key activated once: overspill-cloud tpm request --help",
        )
    key, certificate = endorsement(tpm, folder)
    tpm.forget(key)
    chain = read_optional(folder / "ek_chain.pem") or b""
    return {"ek_certificate": certificate, "ek_chain": chain}, activation


def _extended(registers: Mapping[int, bytes], measured: MeasuredLog) -> dict[int, bytes]:
    after = dict(registers)
    for pcr, digest in measured.extensions():
        after[pcr] = hashlib.sha256(after[pcr] + digest).digest()
    return after


def read_optional(path: Path) -> bytes | None:
    """A file's bytes; None where there is no such file. Raises ``ConfigurationError``."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}.", mend="Let the node read it."
        ) from error
