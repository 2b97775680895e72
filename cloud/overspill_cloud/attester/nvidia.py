"""A GPU beside the machine: its SPDM report and its certificates, by NVML.

The report answers a nonce of the node's boot id and HPKE key, so it is fetched before a node key
configuration is made, which then names it. NVML is loaded from the driver by ``nvidia-ml-py``.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Protocol

from overspill.errors import ConfigurationError, EvidenceRejected, MissingExtra
from overspill.trust.certificates import read_pem
from overspill.trust.nvidia import CERTIFICATES, RIMS, TYPE, gpu_nonce
from overspill.trust.nvidia_report import parse_report
from overspill.types.evidence import Evidence

KIND: Final = "nvidia"
MANIFESTS_FOLDER: Final = "nvidia"
"""In the state folder: NVIDIA's reference manifests, for clients whose policy demands them."""

_ENABLED: Final = 1
_OFF: Final = 0
_MAX_MANIFEST_BYTES: Final = 1 << 20


class Nvml(Protocol):
    """What is called of the module ``pynvml`` (NVML, r550 and later; confidential computing)."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None:
        """Loads the driver's library."""

    def nvmlShutdown(self) -> None:
        """Lets go of it."""

    def nvmlDeviceGetCount(self) -> int:
        """How many GPUs this machine has."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        """A GPU."""

    def nvmlSystemGetConfComputeState(self) -> Any:
        """``ccFeature`` and ``devToolsMode``."""

    def nvmlDeviceGetConfComputeGpuAttestationReport(
        self, handle: Any, nonce: Iterable[int]
    ) -> Any:
        """``attestationReport`` and its size: SPDM request and response over 32 bytes."""

    def nvmlDeviceGetConfComputeGpuCertificate(self, handle: Any) -> Any:
        """``attestationCertChain`` and its size: PEM, from the device to NVIDIA."""


class NvidiaGpu:
    """The one GPU of a node, in confidential-computing mode. ``folder`` may hold its manifests,
    ``rim_driver`` and ``rim_vbios`` (signed XML, as NVIDIA publishes them).

    Raises ``ConfigurationError`` for a machine without a driver, without exactly one GPU, or whose
    GPU is not in that mode or is open to development tools.
    """

    def __init__(self, nvml: Nvml, folder: Path) -> None:
        self._nvml = nvml
        self._folder = folder
        self._one_at_a_time = threading.Lock()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise _unusable(error) from error
        try:
            self._handle = self._only_gpu()
        except BaseException:
            nvml.nvmlShutdown()
            raise

    def evidence(self, boot_id: bytes, hpke_public_key: bytes) -> Evidence:
        """Report and certificates over a node's boot id and HPKE key, for ``gpu_claims_digest``.

        Raises ``ConfigurationError`` where the driver gives none, or one over another nonce.
        """
        nonce = gpu_nonce(boot_id, hpke_public_key)
        with self._one_at_a_time:
            report, certificates = self._ask(nonce)
        try:
            answered = parse_report(report).nonce
            read_pem(certificates)
        except EvidenceRejected as error:
            raise ConfigurationError(
                f"The GPU's driver gave evidence that cannot be read: {error}",
                mend="Update the driver; NVML of r550 and later is known.",
            ) from error
        if answered != nonce:
            raise ConfigurationError(
                "The GPU answered another nonce.", mend="Make sure nothing else asks it."
            )
        return Evidence(TYPE, report, {CERTIFICATES: certificates, **self._manifests()})

    def close(self) -> None:
        """Lets go of the driver."""
        self._nvml.nvmlShutdown()

    def _only_gpu(self) -> Any:
        nvml = self._nvml
        try:
            count, state = nvml.nvmlDeviceGetCount(), nvml.nvmlSystemGetConfComputeState()
            if count != 1:
                raise ConfigurationError(
                    f"This machine has {count} GPUs; evidence of exactly one goes into a bundle.",
                    mend="Give the guest one GPU, or serve without --gpu.",
                )
            if state.ccFeature != _ENABLED or state.devToolsMode != _OFF:
                raise ConfigurationError(
                    "The GPU is not in confidential-computing mode, or is open to development "
                    "tools.",
                    mend="Turn the mode on from the host (nvidia-smi conf-compute -q shows it).",
                )
            return nvml.nvmlDeviceGetHandleByIndex(0)
        except nvml.NVMLError as error:
            raise _unusable(error) from error

    def _ask(self, nonce: bytes) -> tuple[bytes, bytes]:
        nvml = self._nvml
        try:
            report = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(self._handle, nonce)
            chain = nvml.nvmlDeviceGetConfComputeGpuCertificate(self._handle)
        except nvml.NVMLError as error:
            raise _unusable(error) from error
        return (
            _filled(report.attestationReport, report.attestationReportSize, "report"),
            _filled(chain.attestationCertChain, chain.attestationCertChainSize, "certificates"),
        )

    def _manifests(self) -> dict[str, bytes]:
        found = {}
        for name in RIMS:
            file = self._folder / name
            if not file.is_file():
                continue
            if file.stat().st_size > _MAX_MANIFEST_BYTES:
                raise ConfigurationError(
                    f"{file} has more than {_MAX_MANIFEST_BYTES} bytes.",
                    mend="Put NVIDIA's signed manifest there, or nothing.",
                )
            found[name] = file.read_bytes()
        return found


def open_gpu(folder: Path) -> NvidiaGpu:
    """This machine's GPU. Raises ``MissingExtra``, and as :class:`NvidiaGpu` does."""
    try:
        import pynvml
    except ImportError as error:
        raise MissingExtra("Evidence of a GPU", "nvidia") from error
    return NvidiaGpu(pynvml, folder)


def _filled(array: ctypes.Array[Any] | bytes, size: int, what: str) -> bytes:
    """The part of a driver's fixed array that it says it filled; a length past the end fails."""
    whole = bytes(array)
    if not 0 < size <= len(whole):
        raise ConfigurationError(
            f"The GPU's driver states {size} bytes of {what} in an array of {len(whole)}.",
            mend="Update the driver.",
        )
    return whole[:size]


def _unusable(error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"The GPU's driver cannot be asked for evidence: {error}.",
        mend="Install NVIDIA's driver (r550 or later), or serve without --gpu.",
    )
