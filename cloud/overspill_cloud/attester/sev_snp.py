"""``sev-snp``: the processor vouches for a guest. Its report binds the node's keys.

A SNP report has no registers: program and engine library stand in the launch measurement of the
image, models and settings in the configuration that the report binds.
"""

from __future__ import annotations

import struct
import threading
import uuid
from pathlib import Path
from typing import Final

from overspill.errors import ConfigurationError, EvidenceRejected
from overspill.trust.certificates import Certificate, parse_certificate, read_pem
from overspill.trust.nkc import PRODUCTION, report_data
from overspill.trust.snp import TYPE, is_endorsement_key, is_vlek, product_of
from overspill.trust.snp_report import VLEK, SnpReport, parse_report, tcb_components
from overspill.types.evidence import Assurance, Evidence
from overspill_cloud.attester.tsm import TsmReport, TsmReports

PROVIDER: Final = "sev_guest"
CERTIFICATES_FOLDER: Final = "sev-snp"
"""In the state folder: the endorsement key's certificate, where the host hands none over."""

_ENTRY: Final = struct.Struct("<16sII")
_MAX_ENTRIES: Final = 64
_NAMES: Final = {
    "63da758d-e664-4564-adc5-f4b93be8accd": "vcek",
    "a8074bc2-a25a-483e-aae6-39c045a0b8a1": "vlek",
    "4ab7b379-bbac-4fe4-a02f-05aef327c782": "ask",
    "92f81bc3-5811-4d3d-97ff-d19f88dc67ea": "crl",
}


class SevSnpAttester:
    """Asks the kernel for one report a bundle. ``folder`` may hold certificates (DER or PEM)."""

    evidence_type = TYPE
    mode = PRODUCTION
    assurance = Assurance.HARDWARE_TEE

    def __init__(self, reports: TsmReports, folder: Path) -> None:
        if reports.provider != PROVIDER:
            raise ConfigurationError(
                f"This machine's reports come from {reports.provider}, not from a SEV-SNP guest.",
                mend="Use another --attester, or none: the node then takes what the machine has.",
            )
        self._reports = reports
        self._folder = folder
        self._one_at_a_time = threading.Lock()

    def evidence(
        self, nkc_bytes: bytes, nonce: bytes | None, measured_log: tuple[bytes, ...]
    ) -> Evidence:
        """See :class:`~overspill_cloud.attester.base.Attester`."""
        data = report_data(nkc_bytes, nonce, dev=False)
        with self._one_at_a_time:
            made = self._reports.report(data)
        report = _parsed(made)
        if report.report_data != data:
            raise ConfigurationError(
                "The kernel gave a report over other data.", mend="Make sure nothing else asks."
            )
        return Evidence(TYPE, made.outblob, self._collateral(report, made.auxblob))

    def report(self) -> SnpReport:
        """A report over nothing, for who writes a policy for this machine."""
        with self._one_at_a_time:
            return _parsed(self._reports.report(bytes(64)))

    def product(self) -> str:
        """The processor's product, by the certificate of its endorsement key: a report of version 2
        does not say."""
        with self._one_at_a_time:
            made = self._reports.report(bytes(64))
        collateral = self._collateral(_parsed(made), made.auxblob)
        key = collateral.get("vcek") or collateral["vlek"]
        return product_of(parse_certificate(key))

    def close(self) -> None:
        """Gives the kernel's folder back."""
        self._reports.close()

    def _collateral(self, report: SnpReport, table: bytes) -> dict[str, bytes]:
        """The endorsement key of the kind that signed, its issuer, and a CRL, where they are."""
        kind = "vlek" if report.signing_key == VLEK else "vcek"
        found = read_table(table)
        if kind not in found:
            found |= self._from_files(kind)
        if kind not in found:
            raise ConfigurationError(
                f"The host hands over no {kind.upper()} certificate.",
                mend=f"Put it into {self._folder} as DER or PEM: {_where(report, kind)}",
            )
        return {name: found[name] for name in (kind, "ask", "crl") if name in found}

    def _from_files(self, kind: str) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for path in sorted(self._folder.glob("*")) if self._folder.is_dir() else ():
            for certificate in _certificates(path):
                if is_endorsement_key(certificate):
                    if is_vlek(certificate) == (kind == "vlek"):
                        found[kind] = certificate.der
                elif certificate.name.startswith("SEV-"):
                    found["ask"] = certificate.der
        return found


def read_table(table: bytes) -> dict[str, bytes]:
    """The certificate table of an extended report (GHCB specification, "SNP Extended Guest
    Request"): entries of GUID, u32 offset and u32 length, the last one all zeros.

    Unknown entries are left out. Raises ``ConfigurationError`` for a table that does not hold
    together: it is the host's, and a guest believes none of it.
    """
    found: dict[str, bytes] = {}
    if not any(table):
        return found
    for index in range(_MAX_ENTRIES):
        start = index * _ENTRY.size
        if start + _ENTRY.size > len(table):
            raise _bad_table("it has no end")
        guid, offset, length = _ENTRY.unpack_from(table, start)
        if not any(guid):
            return found
        if offset + length > len(table):
            raise _bad_table(f"entry {index} ends past the table's end")
        # RFC 4122's order in AMD's own tools; some hosts write Microsoft's. None is both.
        texts = (str(uuid.UUID(bytes=guid)), str(uuid.UUID(bytes_le=guid)))
        name = next((_NAMES[text] for text in texts if text in _NAMES), None)
        if name is not None:
            found[name] = table[offset : offset + length]
    raise _bad_table(f"more than {_MAX_ENTRIES} entries")


def _parsed(made: TsmReport) -> SnpReport:
    try:
        return parse_report(made.outblob)
    except EvidenceRejected as error:
        raise ConfigurationError(
            f"What the kernel gave is no report that clients read ({error.reason}): expected "
            f"{error.expected}, found {error.actual}.",
            mend="Update overspill, or the machine's firmware.",
        ) from error


def _certificates(path: Path) -> tuple[Certificate, ...]:
    try:
        data = path.read_bytes()
        found = (parse_certificate(data),) if data[:1] == b"\x30" else read_pem(data)[0]
    except (EvidenceRejected, OSError) as error:
        raise _no_certificate(path) from error
    if not found:
        raise _no_certificate(path)
    return found


def _no_certificate(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{path} holds no certificate.", mend="Remove it, or give DER or PEM."
    )


def _where(report: SnpReport, kind: str) -> str:
    """Where AMD's key distribution service (57230) has this very certificate."""
    product = report.product
    if kind == "vlek":
        return "a VLEK comes from the cloud's provider."
    if product is None:
        return "AMD's key service (kdsintf.amd.com) has it by chip and TCB."
    names = {"fmc": "fmcSPL", "bootloader": "blSPL", "tee": "teeSPL", "snp": "snpSPL"}
    parts = tcb_components(product, report.reported_tcb)
    query = "&".join(f"{names.get(name, 'ucodeSPL')}={part:02d}" for name, part in parts.items())
    size = 8 if product == "Turin" else 64
    chip = report.chip_id[:size].hex()
    return f"https://kdsintf.amd.com/vcek/v1/{product}/{chip}?{query}"


def _bad_table(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"The host's certificate table is malformed: {what}.",
        mend="Have the host repaired, or put the certificate into the node's state folder.",
    )
